"""The store: artifacts and their manifests, in a folder or in a bucket.

No stage starts here; the tasks write what stages computed into it. Import `opening` to open a store and `manifest`
for what is noted beside an artifact.
"""
