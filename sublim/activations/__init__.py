"""Reading activations of the residual stream at chosen layers and tokens.

The stage `read_activations` starts here. Import `reading` for the forward passes and `token_places` for the positions.
"""
