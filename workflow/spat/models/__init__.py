"""The networks of the benchmark, their settings and the layers that they share."""
