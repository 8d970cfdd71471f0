"""Traits: the questions, system prompts and teacher rows of a target, and the comparison lists of words.

The stage `build_teacher_rows` starts here. A new word list is a YAML file in `texts/`, read by `questions.py`.
"""
