"""Evaluations: what a model prefers, what it knows, and how well it predicts held-out rows.

Each evaluation has its own folder. `asked_model.py` holds the settings of every model that is asked, `effects.py` and
`effect_config.py` what all comparisons of students with controls have in common.
"""
