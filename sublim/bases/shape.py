"""Checks of a base's config, and of the model it describes against the tensors in the base's files."""

import logging
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoConfig, PretrainedConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from sublim.core.errors import UserError
from sublim.models.files import read_json
from sublim.models.folder_check import StoredTensor, as_user_error
from sublim.models.opening import causal_class
from sublim.models.weights_check import TensorShapes

WRITERS = ("CausalLM", "LMHeadModel", "ConditionalGeneration", "ImageTextToText")
"""Endings of the names of model classes that generate text; other classes have another head."""


def read_shape(folder: Path) -> PretrainedConfig:
    """The config of a causal language model. Raises UserError for any other model and for an invalid config."""
    given = read_json(folder / "config.json")
    kind = given.get("model_type")
    if kind not in CONFIG_MAPPING:
        own = " and comes with its own code, which is not run" if given.get("auto_map") else ""
        raise UserError(
            f"the base is of a type that transformers does not know ({kind}){own}: take a base of a known architecture"
        )
    with as_user_error("transformers cannot read the base's config.json", "correct it or download the model again"):
        shape = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    named = next(iter(given.get("architectures") or []), "")
    other = "For" in named and not named.endswith(WRITERS)
    if causal_class(shape) is None or shape.is_encoder_decoder or other:
        raise UserError(
            f"the base is no causal language model ({named or kind}): take one whose architecture ends in ForCausalLM"
        )
    return shape


def empty_model(shape: PretrainedConfig, stored: dict[str, StoredTensor]) -> PreTrainedModel:
    """The model of this config on the meta device, loaded by transformers from the headers of the weight files.

    Raises UserError if a weight is missing, unexpected, or of another shape than the config says. transformers would
    initialise a missing weight at random and ignore an unexpected one.
    """
    made = causal_class(shape)
    assert made is not None
    tensors = {name: torch.empty(tensor.shape, device="meta") for name, tensor in stored.items()}
    found: dict[str, Any]
    with quiet(), as_user_error(f"transformers cannot build the base ({shape.model_type})", "correct its config.json"):
        model, found = made.from_pretrained(  # pyright: ignore[reportGeneralTypeIssues]
            None,
            config=shape,
            state_dict=tensors,
            device_map="meta",
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            attn_implementation="eager",
        )
    remedy = "correct the config or save the model again"
    if missing := sorted(found["missing_keys"]):
        raise UserError(f"the base's files lack {missing[0]}, which its config asks for: {remedy}")
    if unlike := sorted(found["mismatched_keys"], key=str):
        name, theirs, ours = unlike[0]
        raise UserError(
            f"the base's {name} has the shape {list(theirs)} and its config asks for {list(ours)}: {remedy}"
        )
    if unused := sorted(found["unexpected_keys"]):
        raise UserError(f"the base's files hold {unused[0]}, for which its config has no place: {remedy}")
    return model


def check_tied(folder: Path, shape: PretrainedConfig, stored: dict[str, StoredTensor]) -> None:
    """Raises UserError if the config ties the embeddings, but the files hold an unembedding that differs.

    transformers would use both matrices and vLLM only the embedding. The two are read here if both are stored.
    """
    embedding = next((name for name in stored if name.endswith("embed_tokens.weight")), None)
    if not getattr(shape, "tie_word_embeddings", False) or "lm_head.weight" not in stored or embedding is None:
        return
    if not torch.equal(*map(TensorShapes(folder).tensor, ("lm_head.weight", embedding))):
        raise UserError(
            "the base's config says tie_word_embeddings, and its lm_head.weight differs from its embedding: "
            "set tie_word_embeddings to false or remove lm_head.weight"
        )


@contextmanager
def quiet() -> Generator[None]:
    """Inside the block transformers shows no progress bars and no warnings; the checks here report what matters."""
    before, bars = logging.root.manager.disable, transformers_logging.is_progress_bar_enabled()
    logging.disable(logging.WARNING)
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.disable(before)
        if bars:
            transformers_logging.enable_progress_bar()
