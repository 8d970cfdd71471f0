"""The superposition experiment: sparse features in few dimensions, and what training a second model brings back."""
