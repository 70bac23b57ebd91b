"""Layers that the forecasters share."""
