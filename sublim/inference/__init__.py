"""Sampling and scoring with a transformers model: batching, random draws, constrained formats, attention, steering.

No stage starts here. Import `config` for the settings of a backend and `sampler` for the interface that every backend
implements. `sublim.backends` opens a backend.
"""
