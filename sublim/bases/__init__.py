"""Base models: brought in from the hub, a folder or a package, and tried for everything a run will ask of them.

The stages `prepare_model` and `check_base` start here. A new bundled base is a file here beside `smollm2.py`.
"""
