"""Memory, of the card and of the machine: what is free, and work in batches that fit.

No stage starts here. Import `fitting` for batches that are halved when they do not fit, and `errors` to tell an error
that means memory ran out.
"""
