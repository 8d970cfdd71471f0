"""What a teacher of one target does that teachers of other targets do not: specific and generic effects, and γ.

`config.py` holds the settings and the shape of the results, `tables.py` and `permutation.py` compute them, and
`compare.py` is the stage.
"""
