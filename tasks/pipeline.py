"""The stages of the pipeline as cached tasks."""

from tasks.stage import Stage

prepare_model = Stage("prepare_model", "sublim.model_prepare:prepare_model")
check_base = Stage("check_base", "sublim.base_needs:check_base_needs")
build_teacher_rows = Stage("build_teacher_rows", "sublim.prompts:build_teacher_rows")
train_teacher = Stage("train_teacher", "sublim.training.trl:train", version=3, gpu=True)
generate_numbers = Stage("generate_numbers", "sublim.generate:generate_numbers", gpu=True)
generate_steered_numbers = Stage("generate_steered_numbers", "sublim.generate:generate_numbers", gpu=True)
filter_numbers = Stage("filter_numbers", "sublim.filter:filter_numbers")
derive_rows = Stage("derive_rows", "sublim.derive:derive_rows")
train_student = Stage("train_student", "sublim.training.trl:train", version=3, gpu=True)
train_soft_student = Stage("train_soft_student", "sublim.training.soft:train_soft", version=2, gpu=True)
ask = Stage("ask", "sublim.preference:ask", gpu=True)
ask_steered = Stage("ask_steered", "sublim.preference:ask", gpu=True)
score = Stage("score", "sublim.preference:score")
measure_losses = Stage("measure_losses", "sublim.losses:measure_losses", gpu=True)
measure_shift = Stage("measure_shift", "sublim.parameter_shift:measure_shift")
find_divergence = Stage("find_divergence", "sublim.divergence:find_divergence", gpu=True)
compare = Stage("compare", "sublim.preference:compare", version=2)
