"""The backend on vLLM.

Its engine, adapters, draws that agree with the other backends, and steering inside the engine.
"""
