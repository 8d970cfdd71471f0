"""The design of studies: arms and what they are for, pilots, and the table of a sweep.

The stages `record_cell` and `tabulate_sweep` start here.
"""
