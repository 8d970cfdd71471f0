"""What every flow shares: settings and presets, the record of its stages, checks of the machine, and what it shows.

It imports no flow.
"""
