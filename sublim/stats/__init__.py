"""Statistics: intervals over units and questions, tests, and the power of a design.

No stage starts here. Import `intervals` for intervals and tests, and `power` to plan how many units an effect needs.
"""
