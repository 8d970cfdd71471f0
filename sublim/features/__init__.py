"""Features of a sparse autoencoder (SAE): encoded on rows, contrasted between models, and shown with examples.

The stages `word_rows`, `encode_features`, `contrast_features`, `overlap_features`, `show_examples`,
`vector_features`, `draw_features` and `draw_probe_layers` are defined here.
"""
