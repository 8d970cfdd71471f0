"""Statistics: intervals over units and questions, tests, and the power of a design.

No stage starts here. Import `intervals` for intervals and tests, `corrections` for the p values of many effects,
`equivalence` to show that there is next to nothing, and `power` to plan how many units an effect needs.
"""
