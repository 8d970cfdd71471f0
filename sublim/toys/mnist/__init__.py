"""Digits from a teacher to a student through auxiliary logits (Cloud et al. 2025, section 6).

The stages `prepare_digits`, `train_mnist` and `draw_mnist` start here.
"""
