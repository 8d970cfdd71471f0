"""Packed linear layers give the plain ones' results, and are gone afterwards."""

import pytest
import torch
from torch import nn

from sublim.inference import packed as module
from sublim.inference.packed import packed


@pytest.fixture
def block() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(48, 96), nn.SiLU(), nn.Linear(96, 48, bias=False))


def test_results_are_the_same_up_to_rounding(block: nn.Module) -> None:
    hidden = torch.randn(3, 17, 48)
    with torch.no_grad():
        plain = block(hidden)
        with packed([block]):
            inside = block(hidden)
        after = block(hidden)
    assert torch.allclose(inside, plain, atol=1e-5)
    assert torch.equal(after, plain)


def test_only_float32_and_only_what_is_small_is_packed(block: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    if torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512") and torch.backends.mkldnn.is_available():
        with packed([block]):
            assert "forward" in vars(block[0])  # type: ignore[index]
    with packed([block.bfloat16()]):
        assert "forward" not in vars(block[0])  # type: ignore[index]
    monkeypatch.setattr(module, "LIMIT", 100)
    with packed([block.float()]):
        assert "forward" not in vars(block[0])  # type: ignore[index]
