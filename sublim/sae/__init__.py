"""Sparse autoencoders: the texts they are trained on, training them, taking published ones, and their quality.

The stages `write_chats`, `import_texts`, `gather_texts`, `import_sae`, `train_sae` and `measure_sae` start here.
"""
