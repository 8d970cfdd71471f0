"""Linear probes: trained on activations to tell two kinds of rows apart.

The stages `fit_probes` and `draw_probes` start here.
"""
