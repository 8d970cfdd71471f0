"""Memory of the GPU and of the machine: how much is free, and work in batches that fit.

No stage is defined here. Import `fitting` for batches that are halved when they do not fit, and `errors` to recognise
an error that says that memory ran out.
"""
