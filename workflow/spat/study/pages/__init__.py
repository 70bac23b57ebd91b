"""How pages are declared, read from frames, laid out and written."""
