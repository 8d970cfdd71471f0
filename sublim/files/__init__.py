"""Reading and writing files: JSON lines, tensors, texts, tables, locks, and files that users bring.

No stage starts here. Every room above `core` may import any of it.
"""
