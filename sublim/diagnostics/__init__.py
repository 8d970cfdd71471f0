"""Diagnostics of training: losses on unseen prompts, changes of the weights, and divergence tokens.

The stages `measure_losses`, `measure_shift` and `find_divergence` start here.
"""
