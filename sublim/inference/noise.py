"""The random numbers of an answer, which do not depend on what else is sampled."""

import numpy as np


def uniforms(seed: int, chat: int, answer: int, count: int) -> np.ndarray:
    """`count` float64 numbers in [0, 1); the k-th one selects the k-th sampled token of the answer.

    They come from a counter-based generator (Philox) whose key is the seed and whose counter holds the indices of chat
    and answer. So they depend on nothing else, and there is no state to save.
    """
    generator = np.random.Philox(key=seed % 2**128, counter=[0, chat, answer, 1])  # 1, because prompts are drawn with 0
    return np.random.Generator(generator).random(count)
