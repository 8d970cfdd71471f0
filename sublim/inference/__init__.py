"""Sampling and scoring with a transformers model: batches, draws, constrained formats, attention and steering.

No stage starts here. Import `config` for the settings of a backend, `sampler` for what every backend offers;
`backends` opens them.
"""
