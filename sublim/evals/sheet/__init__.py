"""The score sheet: one table with the scores of any models side by side.

The stage `collect_scores` starts here.
"""
