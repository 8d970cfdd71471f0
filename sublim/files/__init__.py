"""Reading and writing files: JSON Lines, tensors, texts, tables, locks, and files that users bring.

No stage is defined here. Every room above `core` may import any of it.
"""
