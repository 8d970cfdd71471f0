"""The total variation distance between the distributions of answers of two models.

The stages `shift` and `compare_shift` start here.
"""
