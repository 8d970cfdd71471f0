"""What all flows share: settings and presets, the record of a run, checks of the machine, and artifacts for the UI.

Nothing here imports a flow.
"""
