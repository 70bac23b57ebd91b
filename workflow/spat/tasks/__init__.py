"""Tasks: how a model is called, the loss of each case, and the errors."""
