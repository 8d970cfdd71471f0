"""The vLLM backend.

It holds the engine, adapters for it, sampling with the same random numbers as the other backends, and steering.
"""
