"""The residual stream: hooks that read or change it, steering vectors, and the settings of steering.

No stage starts here. Sampling, activations, SAEs and steering all use these hooks, so a place such as resid_post of
layer 14 is the same tensor everywhere.
"""
