"""Traits: the questions, system prompts and teacher rows of a target, and the lists of words it is chosen from.

The stage `build_teacher_rows` starts here. A new word list is a YAML file in `texts/`, read by `questions.py`.
"""
