"""Tables and figures: pure functions from frames."""
