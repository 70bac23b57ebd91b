"""The stages of the pipeline: one module per stage, with a function that runs it."""
