"""Checks before a run: a GPU with enough memory, and a model folder that can be used."""

from sublim.core.config import Config
from sublim.core.errors import UserError
from sublim.core.hardware import gpu
from sublim.models.config import LocalModel
from sublim.models.files import TEMPLATE, loaded_files, read_json


def check_machine(memory_gib: float) -> None:
    """Raises UserError when this machine has no GPU with `memory_gib` GiB; 10 % less is accepted."""
    if not memory_gib:
        return
    card = gpu()
    if card is None:
        raise UserError(
            f"these settings need a GPU of {memory_gib:g} GiB and none is visible: use --preset quickstart here, "
            "or see `sublim doctor`"
        )
    if card.memory / 2**30 < 0.9 * memory_gib:
        raise UserError(
            f"these settings need {memory_gib:g} GiB and {card.name} has {card.memory / 2**30:.0f}: "
            "lower the batch sizes and gpu_memory_gib"
        )


def check_model(model: Config) -> None:
    """Raises UserError for a local folder without a model, or with a model that has no chat template."""
    if not isinstance(model, LocalModel) or model.chat_template:
        return
    files = loaded_files(model.path)
    tokenizer = read_json(model.path / "tokenizer_config.json") if "tokenizer_config.json" in files else {}
    if not {TEMPLATE, "chat_template.json"} & {*files} and not tokenizer.get("chat_template"):
        raise UserError(
            f"{model.path} has no chat template: take an instruction-tuned model or set model.chat_template"
        )
