"""MMLU-Pro (arXiv 2406.01574): whether training has reduced a model's knowledge.

The stages `prepare_mmlu_pro`, `ask_mmlu_pro`, `score_mmlu_pro` and `compare_mmlu_pro` start
here.
"""
