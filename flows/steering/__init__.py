"""The steering study: vectors, their effect at each strength, and whether training writes the same direction."""
