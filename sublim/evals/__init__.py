"""Evaluations: what a model prefers, what it knows, and how well it predicts held-out rows.

Each evaluation has its own folder. `effects.py` and `effect_config.py` hold what all comparisons of students with
controls have in common.
"""
