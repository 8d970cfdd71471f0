"""Model folders: their files, loading models, adapters, and checks of weights before they are loaded.

The stage `import_weights` starts here, and so does the export of a model for other tools. Import `opening` to load a
model and `files` to read its folder.
"""
