"""The pipeline: teacher, rows, students, controls, and the comparison between them.

`flow.py` composes the stages, `config.py` has the settings, `plan.py` what each stage gets, `checks.py` what is
refused. Other studies may import from it.
"""
