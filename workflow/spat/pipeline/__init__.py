"""The benchmark pipeline: configuration, runs, stages and tracking."""
