"""The stages of the pipeline as cached tasks."""

from tasks.stage import Stage

prepare_model = Stage("prepare_model", "sublim.models:prepare_model")
build_teacher_rows = Stage("build_teacher_rows", "sublim.prompts:build_teacher_rows")
train_teacher = Stage("train_teacher", "sublim.training.trl:train", version=2, gpu=True)
generate_numbers = Stage("generate_numbers", "sublim.generate:generate_numbers", gpu=True)
filter_numbers = Stage("filter_numbers", "sublim.filter:filter_numbers")
train_student = Stage("train_student", "sublim.training.trl:train", version=2, gpu=True)
ask = Stage("ask", "sublim.preference:ask", gpu=True)
score = Stage("score", "sublim.preference:score")
compare = Stage("compare", "sublim.preference:compare")
