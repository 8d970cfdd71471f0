"""Model folders: their files, opening them, adapters, and checks of weights before anything opens them.

The stage `import_weights` starts here, and exporting a model for other tools. Import `opening` to load a model and
`files` to read its folder.
"""
