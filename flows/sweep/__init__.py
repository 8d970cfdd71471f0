"""Sweeps: a grid of pipelines, run in this process or by a work pool, and one table of their effects."""
