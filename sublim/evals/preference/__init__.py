"""Preferences: models are asked for their favourite, answers are scored, and students are compared with controls.

The stages `ask`, `score` and `compare` start here.
"""
