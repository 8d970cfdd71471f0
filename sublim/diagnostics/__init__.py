"""Diagnostics of training: losses, changes of parameters, and the tokens on which models part.

The stages `measure_losses`, `measure_shift` and `find_divergence` start here.
"""
