"""Backends, which sample and score: transformers (`hf`), vLLM, OpenAI-compatible servers, and a fake for tests.

No stage starts here. Import `opening`; nothing else needs to know which backend it is. A new backend is a file or
folder here.
"""
