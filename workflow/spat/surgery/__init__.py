"""Removal of attention: choosing masks, cutting, verifying and saving."""
