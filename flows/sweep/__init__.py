"""A sweep: a grid of pipelines, run here or handed to a work pool, and one table of their effects."""
