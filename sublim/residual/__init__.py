"""The residual stream: hooks that read or change it, vectors, and steering as configuration.

No stage starts here. Sampling, activations, SAEs and steering all use these hooks, so that they mean the same tensor.
"""
