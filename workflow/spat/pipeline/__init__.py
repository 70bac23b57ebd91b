"""The benchmark pipeline: configuration, runs, stages, tracking."""
