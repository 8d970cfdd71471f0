"""Labels of SAE features, which describe what a feature responds to: imported from Neuronpedia or from a table, and
sorted into categories by a model.

The stages `import_labels`, `take_labels` and `annotate` are defined here.
"""
