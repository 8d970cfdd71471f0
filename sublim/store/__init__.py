"""The store: artifacts (finished outputs of stages) and their manifests, in a folder or in an S3 bucket.

No stage is defined here; the tasks write the outputs of stages into the store. Import `opening` to open a store and
`manifest` for the record beside each artifact.
"""
