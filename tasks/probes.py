"""The stages of linear probes as cached tasks."""

from tasks.stage import Stage

fit_probes = Stage("fit_probes", "sublim.probes:fit_probes", gpu=True)
draw_probes = Stage("draw_probes", "sublim.probe_figures:draw_probes")
