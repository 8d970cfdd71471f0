"""Linear probes: classifiers on activations that tell two or more kinds of rows apart.

The stages `fit_probes` and `draw_probes` start here.
"""
