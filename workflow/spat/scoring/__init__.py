"""Scores of attention: one probe, many criteria."""
