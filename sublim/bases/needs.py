"""The stage that checks at the start what a run needs of its base hours later: system prompts, formats, adapters."""

import sys
from pathlib import Path

from sublim.bases.needs_config import CheckBaseConfig
from sublim.bases.shape import empty_model, read_shape
from sublim.bases.tokens import check_chats, limits_of
from sublim.chats import chat
from sublim.inference.constrained import answer_plan
from sublim.models.adaptable import check_modules
from sublim.models.files import write_json
from sublim.models.folder_check import stored_tensors
from sublim.models.opening import load_tokenizer


def check_base_needs(out: Path, config: CheckBaseConfig, *, scratch: Path, base: Path) -> None:
    """Stage: writes how many tokens each system prompt and an answer in the constrained format take.

    Raises UserError for what this base cannot do. It reads no weights and takes a second or two.
    """
    model, tokenizer = empty_model(read_shape(base), stored_tensors(base)), load_tokenizer(base)
    check_chats(tokenizer, limits_of(model), config.systems)
    check_modules(model, config.target_modules)
    lengths = [len(chat.render_ids(tokenizer, chat.chat("Hello", system=system))) for system in config.systems]
    forced = answer_plan(tokenizer, config.constraint, sys.maxsize)
    found = {"systems": lengths, "constraint": forced and forced.length, "modules": sorted(config.target_modules)}
    write_json(out / "needs.json", found)
