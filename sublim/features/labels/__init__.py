"""Labels of features: taken from Neuronpedia or a table, or written by a model from examples.

The stages `import_labels`, `take_labels` and `annotate` start here.
"""
