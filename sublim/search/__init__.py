"""The search for training parameters with Optuna: its space, its study, its storage and its figures.

The stages `train_rung` and `draw_search` start here.
"""
