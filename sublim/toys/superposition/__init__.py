"""Toy models of superposition (Elhage et al. 2022), many of which are trained at once on a CPU or GPU.

Here are the stages `train_superposition` and `draw_superposition`.
"""
