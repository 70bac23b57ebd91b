"""The device: kernels, streams, concurrency, costs."""
