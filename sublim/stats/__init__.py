"""Statistics: intervals over units and questions, and the power of a design.

No stage starts here. Import `intervals` for the bootstrap and `power` for the smallest effect that a design can
detect.
"""
