"""Errors, transfer and statistics."""
