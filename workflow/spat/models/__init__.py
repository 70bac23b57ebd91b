"""Forecasters and the attention they share."""
