"""How attention is removed: cut, verify, store, and choose what goes."""
