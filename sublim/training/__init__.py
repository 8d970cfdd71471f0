"""Training of teachers and students: labels, the plan of updates, the training loop, and the files that are kept.

The stages `make_start`, `train_teacher`, `train_student` and `train_soft_student` start here. Import `config` for the
settings and `checkpoints` to find the weights that a training run kept.
"""
