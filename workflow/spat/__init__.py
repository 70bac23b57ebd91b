"""SPAT benchmark: which attention does a time-series Transformer need, and who can tell."""

__version__ = "0.1.0"
