"""Preferences: a model is asked for its favourite, and the answers are scored and compared with the controls'.

The stages `ask`, `score` and `compare` start here.
"""
