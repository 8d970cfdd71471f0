"""Sparse autoencoders (SAEs): texts to train them on, training, importing published ones, and measuring quality.

The stages `write_chats`, `import_texts`, `gather_texts`, `import_sae`, `train_sae` and `measure_sae` are defined here.
"""
