"""Activations of the residual stream, read at places that are named by tokens.

The stage `read_activations` starts here. Import `reading` for the passes and `token_places` for where to look.
"""
