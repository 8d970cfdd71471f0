"""The stages of evaluations as cached tasks."""

from tasks.stage import Stage

import_weights = Stage("import_weights", "sublim.imported:import_weights")
prepare_mmlu_pro = Stage("prepare_mmlu_pro", "sublim.mmlu_pro_data:prepare_mmlu_pro")
ask_mmlu_pro = Stage("ask_mmlu_pro", "sublim.mmlu_pro:ask_mmlu_pro", gpu=True)
ask_mmlu_pro_steered = Stage("ask_mmlu_pro_steered", "sublim.mmlu_pro:ask_mmlu_pro", gpu=True)
score_mmlu_pro = Stage("score_mmlu_pro", "sublim.mmlu_pro:score_mmlu_pro")
compare_mmlu_pro = Stage("compare_mmlu_pro", "sublim.mmlu_pro_compare:compare_mmlu_pro", version=3)
shift = Stage("shift", "sublim.shift:shift")
compare_shift = Stage("compare_shift", "sublim.shift_compare:compare_shift", version=2)
collect_scores = Stage("collect_scores", "sublim.evaluation:collect_scores", version=2)
record_cell = Stage("record_cell", "sublim.sweep:record_cell")
tabulate_sweep = Stage("tabulate_sweep", "sublim.sweep:tabulate_sweep", version=2)
