"""Configs of the backends: light to import, and what is automatic is settled before a key is made."""

import subprocess
import sys

import pytest
from pydantic import TypeAdapter, ValidationError

from sublim.core import hardware
from sublim.core.digest import digest
from sublim.core.hardware import Gpu
from sublim.evals.heldout_loss.config import HeldoutConfig
from sublim.inference import config as inference
from sublim.inference.config import Backend, FakeBackend, HfBackend, NumberFormat, SamplingParams


def test_configs_are_imported_without_torch():
    code = "import sys, sublim.backends.fake; print('torch' in sys.modules, 'transformers' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).split() == ["False", "False"]


@pytest.mark.parametrize(
    ("card", "flash", "expected"),
    [
        (None, True, ("float32", "sdpa")),
        (Gpu("A6000", 48 << 30, (8, 6)), False, ("bfloat16", "sdpa")),
        (Gpu("A6000", 48 << 30, (8, 6)), True, ("bfloat16", "flash_attention_2")),
        (Gpu("T4", 16 << 30, (7, 5)), True, ("bfloat16", "sdpa")),
    ],
)
def test_automatic_values_are_settled_by_the_machine(
    card: Gpu | None, flash: bool, expected: tuple[str, str], monkeypatch: pytest.MonkeyPatch
):
    for module in (hardware, inference):
        monkeypatch.setattr(module, "gpu", lambda: card)
    monkeypatch.setattr(hardware, "find_spec", lambda name: object() if flash else None)
    resolved = HfBackend().resolved()
    assert (resolved.dtype, resolved.attention) == expected
    read = HeldoutConfig().resolved()
    assert (read.dtype, read.attention) == expected
    assert resolved.resolved() == resolved
    chosen = HfBackend(dtype="float32", attention="eager").resolved()
    assert (chosen.dtype, chosen.attention) == ("float32", "eager")


def test_only_what_changes_the_draws_is_in_the_identity():
    base = HfBackend(dtype="float32", attention="sdpa")
    assert digest(base) == digest(base.model_copy(update={"batch_size": 7, "cuda_graphs": False}))
    assert digest(base) != digest(base.model_copy(update={"dtype": "bfloat16"}))
    assert digest(SamplingParams(max_tokens=5)) != digest(SamplingParams(max_tokens=5, seed=1))


def test_the_kind_chooses_the_backend_and_wrong_values_are_refused():
    adapter: TypeAdapter[Backend] = TypeAdapter(Backend)
    assert isinstance(adapter.validate_python({"kind": "fake"}), FakeBackend)
    for wrong in ({"kind": "hf", "top_k": 5}, {"kind": "nothing"}):
        with pytest.raises(ValidationError):
            adapter.validate_python(wrong)
    for params in ({"max_tokens": 0}, {"max_tokens": 5, "top_p": 0}, {"max_tokens": 5, "temperature": -1}):
        with pytest.raises(ValidationError):
            SamplingParams.model_validate(params)
    with pytest.raises(ValidationError):
        NumberFormat(separator="1")
