"""Code for devices: kernels, streams, concurrency, and measurements of cost."""
