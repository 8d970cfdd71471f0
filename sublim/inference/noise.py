"""The random numbers of an answer, its own whatever is drawn beside it."""

import numpy as np


def uniforms(seed: int, chat: int, answer: int, count: int) -> np.ndarray:
    """`count` numbers in [0, 1), float64; the k-th decides the answer's k-th drawn token.

    From a counter-based generator with the seed as its key and chat and answer in its counter, so they depend on
    nothing else, and there is no state to save.
    """
    generator = np.random.Philox(key=seed % 2**128, counter=[0, chat, answer, 1])  # 1: prompts are drawn from 0
    return np.random.Generator(generator).random(count)
