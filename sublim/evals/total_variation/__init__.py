"""The distance in total variation between the distributions of answers of two models.

The stages `shift` and `compare_shift` start here.
"""
