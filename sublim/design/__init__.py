"""The design of studies: arms with their expectations, pilots, and the table of a sweep.

Here are the stages `record_cell` and `tabulate_sweep`.
"""
