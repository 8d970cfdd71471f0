"""Sorting of SAE features by their text descriptions, which come from the user or from Neuronpedia."""
