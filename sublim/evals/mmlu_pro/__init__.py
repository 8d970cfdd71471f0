"""MMLU-Pro: whether training has cost knowledge.

The stages `prepare_mmlu_pro`, `ask_mmlu_pro`, `score_mmlu_pro` and `compare_mmlu_pro` start
here.
"""
