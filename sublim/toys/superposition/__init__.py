"""Toy models of superposition (Elhage et al. 2022): trained on this CPU or a GPU, many at once.

The stages `train_superposition` and `draw_superposition` start here.
"""
