"""Labels for SAE features, taken from Neuronpedia or written by a model."""
