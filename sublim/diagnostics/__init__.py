"""Diagnostics: what a carrier really is, losses on unseen prompts, changes of the weights, and divergence tokens.

The stages `examine_carrier`, `measure_losses`, `measure_shift` and `find_divergence` start here.
"""
