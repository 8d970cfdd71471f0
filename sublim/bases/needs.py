"""The stage that tries on a base what a run will ask of it hours later: system prompts, forced lists, adapters."""

from pathlib import Path

from transformers import PreTrainedTokenizerBase

from sublim.bases.needs_config import CheckBaseConfig
from sublim.bases.shape import empty_model, read_shape
from sublim.bases.tokens import check_chats, limits_of
from sublim.chats import chat
from sublim.inference.constrained import plan
from sublim.models.adaptable import check_modules
from sublim.models.files import write_json
from sublim.models.folder_check import stored_tensors
from sublim.models.opening import load_tokenizer


def check_base_needs(out: Path, config: CheckBaseConfig, *, scratch: Path, base: Path) -> None:
    """Stage: notes how many tokens each system prompt and an answer of the forced format take.

    Raises UserError, in one line, for what this base cannot do. Reads no weights: a second or two.
    """
    model, tokenizer = empty_model(read_shape(base), stored_tensors(base)), load_tokenizer(base)
    check_chats(tokenizer, limits_of(model), config.systems)
    check_modules(model, config.target_modules)
    lengths = [len(chat.render_ids(tokenizer, chat.chat("Hello", system=system))) for system in config.systems]
    forced = forced_length(tokenizer, config)
    write_json(out / "needs.json", {"systems": lengths, "constraint": forced, "modules": sorted(config.target_modules)})


def forced_length(tokenizer: PreTrainedTokenizerBase, config: CheckBaseConfig) -> int | None:
    """Tokens of an answer in the forced format. Raises UserError where the tokenizer cannot be held to it."""
    if config.constraint is None:
        return None

    def encode(text: str) -> list[int]:
        ids, start, end = chat.answer_ids(tokenizer, chat.chat("Ten numbers, please.", assistant=text))
        return ids[start : end - 1]

    return plan(tokenizer, encode, config.constraint).length
