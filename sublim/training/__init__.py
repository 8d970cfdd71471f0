"""Training of teachers and students: labels, updates, the trainers trl and unsloth, and what is saved.

The stages `train_teacher`, `train_student` and `train_soft_student` start here. Import `config` for the settings and
`checkpoints` for where weights lie.
"""
