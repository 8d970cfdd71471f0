"""A known-answer test of an adapter in vLLM's engine.

vLLM ignores tensors whose names it does not know, and would then answer as the base or with half an adapter. So the
matrices in the engine are compared with the adapter's file. Then, on one short text, the change that every adapted
layer makes to its output is compared with the product of the file's matrices. The test costs one forward pass.
"""

from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from vllm import LLM
from vllm import SamplingParams as EngineParams
from vllm.inputs import TokensPrompt
from vllm.lora.request import LoRARequest

from sublim.backends.vllm.adapters import adapted_modules
from sublim.core.errors import UserError
from sublim.models.adapters import PREFIX, lora_config, scale
from sublim.models.weights_check import TensorShapes

TEXT = list(range(2, 14))
"""Tokens of the text; which tokens they are does not matter."""
LOOSE = 0.05
"""Allowed relative error of the engine, whose kernels multiply in bfloat16."""
_numbers = count()


class Update(NamedTuple):
    """The change of one module's output, which is up @ down @ input."""

    down: Float[Tensor, "r i"]
    up: Float[Tensor, "o r"]
    """Already multiplied by the adapter's scale."""


def check_answer(llm: LLM, request: LoRARequest, adapter: Path) -> None:
    """Raises UserError where the engine's computation for `request` differs from the adapter in `adapter`."""
    updates, wrong, seen = read_updates(adapter), list[str](), set[str]()

    def attach(model: nn.Module) -> list[Any]:
        manager: Any = model.lora_manager
        slot, parts = manager.lora_index_to_id.index(request.lora_int_id), dict[str, list[str]]()
        for name in manager.modules:
            # The engine may join several modules of the base into one, such as qkv_proj.
            parts[name] = manager.packed_modules.get(name, [name])
        wrong.extend(sorted(updates.keys() - {part for own in parts.values() for part in own}))
        handles = list[Any]()
        for name, own in parts.items():
            layer, held = manager.modules[name], [updates.get(part) for part in own]
            wrong.extend(part for at, part in enumerate(own) if not _held(layer, slot, at, held[at]))
            if any(held):
                handles.append(layer.register_forward_hook(_comparing(own, held, wrong, seen)))
        return handles

    (handles,) = llm.apply_model(attach)
    try:
        if not wrong:
            params = EngineParams(temperature=0, max_tokens=1, ignore_eos=True, detokenize=False)
            # A salt of its own, because a text that is in the prefix cache would not be computed.
            prompt = TokensPrompt(prompt_token_ids=TEXT, cache_salt=f"known answer {next(_numbers)}")
            llm.generate(prompt, params, lora_request=request, use_tqdm=False)
            wrong.extend(sorted(updates.keys() - seen))
    finally:
        for handle in handles:
            handle.remove()
    if wrong:
        raise UserError(
            f"vLLM does not compute what the adapter in {adapter} says (at {wrong[0]}): use the hf backend, or merge "
            "it into its base first"
        )


def read_updates(adapter: Path) -> dict[str, Update]:
    """The matrices of a plain LoRA by module."""
    config, tensors, found = lora_config(adapter), TensorShapes(adapter), dict[str, Update]()
    for module in adapted_modules(adapter):
        embedding = f"{PREFIX}{module}.lora_embedding_A" in tensors
        names = (
            f"{PREFIX}{module}.lora_{'embedding_' * embedding}{side}{'.weight' * (not embedding)}" for side in "AB"
        )
        down, up = map(tensors.tensor, names)
        found[module] = Update(down, up * scale(config, module))
    return found


def _held(layer: Any, slot: int, at: int, update: Update | None) -> bool:
    """Whether part `at` of the engine's layer holds exactly these matrices in the adapter's slot."""
    whole = isinstance(layer.lora_a_stacked, Tensor)  # an embedding, whose matrix is transposed
    down = layer.lora_a_stacked[slot].T if whole else layer.lora_a_stacked[at][slot, 0]
    up = (layer.lora_b_stacked if whole else layer.lora_b_stacked[at])[slot, 0]
    if update is None:
        return not up.any()
    rank = len(update.down)
    return _near(down[:rank], update.down) and _near(up[:, :rank], update.up) and not up[:, rank:].any()


def _near(held: Tensor, wanted: Tensor) -> bool:
    wanted = wanted.to(held.device, held.dtype)
    return held.shape == wanted.shape and torch.allclose(held, wanted, rtol=LOOSE, atol=0)


def _comparing(
    parts: list[str], updates: list[Update | None], wrong: list[str], seen: set[str]
) -> Callable[[Any, tuple[Any, ...], Any], None]:
    """A forward hook that adds to `wrong` the parts whose output is not the base's output plus the update."""

    def compare(layer: Any, args: tuple[Any, ...], output: Any) -> None:
        inputs = args[0][: len(TEXT)]
        plain, found = (_first(each)[: len(TEXT)].float() for each in (layer.base_layer(args[0]), output))
        sizes = list(getattr(layer, "output_slices", None) or [found.shape[-1]])
        for part, update, before, after in zip(
            parts, updates, plain.split(sizes, -1), found.split(sizes, -1), strict=True
        ):
            if update is None:
                continue
            seen.add(part)
            down, up = (side.to(inputs.device).float() for side in update)
            added = (inputs.float() @ down.T if inputs.is_floating_point() else down.T[inputs]) @ up.T
            rounding = 2 * torch.finfo(_first(output).dtype).eps * after.abs().amax(-1)
            if ((after - before - added).abs().amax(-1) > LOOSE * added.abs().amax(-1) + rounding).any():
                wrong.append(part)

    return compare


def _first(output: Any) -> Tensor:
    """A layer's output without the bias that some layers return beside it."""
    return output[0] if isinstance(output, tuple) else output
