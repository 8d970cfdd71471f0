"""Labels of features and what they are about, as cached tasks."""

from tasks.stage import Stage

import_labels = Stage("import_labels", "sublim.neuronpedia:import_labels")
take_labels = Stage("take_labels", "sublim.annotate:take_labels")
annotate = Stage("annotate", "sublim.annotate:annotate", gpu=True)
