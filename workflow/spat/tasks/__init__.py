"""What a model is for: how it is called, the loss of each case, and its errors."""
