"""Evaluations: what a model prefers, what it knows, and how well it predicts rows it has not seen.

Each has its folder. `effects.py` and `effect_config.py` hold what a comparison of students with controls means
everywhere.
"""
