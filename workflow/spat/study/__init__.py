"""The study: one file a question, with its computation, its table and its figure together."""
