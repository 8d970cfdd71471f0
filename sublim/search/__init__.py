"""The search for training parameters with Optuna: its search space, study, storage and figures.

The stages `train_rung` and `draw_search` start here.
"""
