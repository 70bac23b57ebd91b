"""One module a stage of the pipeline, each with a function that a rule or a script can call."""
