"""Steering vectors: made from activations or trained, their effect at each strength, and their alignment.

The stages `mean_activations`, `difference_vectors`, `import_vector`, `train_vector`, `animal_rows`, `steering_sweep`,
`steering_curve`, `alignment`, `change_directions` and `draw_steering` start here.
"""
