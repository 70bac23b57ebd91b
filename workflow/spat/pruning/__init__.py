"""Masks, their choice, the surgery that carries them out, and what it saves."""
