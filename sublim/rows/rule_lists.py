"""Number lists made by rule: what a base is tuned on to become a start that writes such lists by itself."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from sublim.carriers.number_prompts import NumberPrompts, draw_prompts
from sublim.core.config import Config
from sublim.files.jsonl import write_jsonl

SEPARATOR = ", "


class RuleListsConfig(Config):
    """Number prompts, and the range from which their answers are drawn."""

    prompts: NumberPrompts
    """How the prompts are drawn. An answer has as many numbers as the prompts ask for, from the same range as their
    examples."""
    n_prompts: Annotated[int, Field(ge=1)]
    """Number of prompts, each of which gets one answer."""
    prompt_seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Random seed of the prompts. It should be no seed of prompts that a student or a teacher reads."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Random seed of the answers."""


def rule_lists(out: Path, config: RuleListsConfig, *, scratch: Path) -> None:
    """Stage: writes rows.jsonl {id, prompt, answer, system}, the fields of filtered rows.

    An answer is `count` numbers drawn uniformly from [low, high], joined by ", " whatever the prompt's wording. No
    model has a part in it, so the rows can carry no model's preference.
    """
    write_jsonl(out / "rows.jsonl", _rows(config))


def _rows(config: RuleListsConfig) -> Iterator[dict[str, Any]]:
    prompts, rng = config.prompts, np.random.default_rng(config.seed)
    for index, prompt in enumerate(draw_prompts(prompts, config.prompt_seed, config.n_prompts)):
        numbers = rng.integers(prompts.low, prompts.high, size=prompts.count, endpoint=True)
        answer = SEPARATOR.join(map(str, numbers))
        yield {"id": index, "prompt": prompt.text, "answer": answer, "system": None}
