"""Subliminal learning on MNIST: students learn digits from auxiliary logits (Cloud et al. 2025, section 6.2).

Here are the stages `prepare_digits`, `train_mnist` and `draw_mnist`.
"""
