"""The stages of labels, their annotation and probes as cached tasks."""

from tasks.stage import Stage

import_labels = Stage("import_labels", "sublim.neuronpedia:import_labels")
annotate = Stage("annotate", "sublim.annotate:annotate", gpu=True)
fit_probes = Stage("fit_probes", "sublim.probes:fit_probes", gpu=True)
draw_probes = Stage("draw_probes", "sublim.probe_figures:draw_probes")
