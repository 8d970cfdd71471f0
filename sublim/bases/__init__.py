"""Base models: imported from the Hub, a folder or a package, and checked for everything that a run needs.

The stages `prepare_model` and `check_base` start here. Each bundled base has a file here, such as `smollm2.py`.
"""
