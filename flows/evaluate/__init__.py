"""The evaluation of any models: preference, distance between answers, and MMLU-Pro."""
