"""Steering with CUDA graphs: buffers are read anew at every replay, and what is captured is what hooks would do."""

from pathlib import Path

import pytest
import torch

from sublim.backends.opening import open_steerable
from sublim.inference.config import HfBackend, NumberFormat, SamplingParams
from sublim.residual.edits import Edit, Steering, VectorNote
from sublim.residual.vectors import noted, write_vectors
from tests.sublim.inference.plain import CHATS
from tests.sublim.models.test_opening import write_adapter

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU on this machine"),
]


@pytest.mark.parametrize("constraint", [None, NumberFormat(count=4)])
@pytest.mark.parametrize("kind", ["add", "project_out", "replace"])
def test_replayed_steps_are_steered_as_eager_ones(
    kind: str, constraint: NumberFormat | None, smollm2: Path, tmp_path: Path
):
    for name in ("a", "b"):
        values = torch.randn(576, generator=torch.Generator().manual_seed(ord(name)))
        (tmp_path / name).mkdir()
        write_vectors(
            tmp_path / name, {"v": noted(values, VectorNote(site="resid_post", layer=14, source="user", norm=0))}
        )
    adapter = write_adapter(tmp_path / "adapter", smollm2, seed=1)
    params = SamplingParams(max_tokens=32, n=4, seed=2)
    found = list[list[list[list[list[int] | None]]]]()
    for graphs in (False, True):
        backend = HfBackend(dtype="float32", cuda_graphs=graphs)
        with open_steerable(backend, smollm2, weights=adapter) as sampler:
            drawn = list[list[list[list[int] | None]]]()
            for name, strength in (("a", 1.0), ("b", 1.0), ("a", 1.0), ("a", 0.0), (None, 0.0)):
                edit = Edit.model_validate({"vector": "v", "kind": kind, "strength": strength})
                sampler.steer(sampler.edits(Steering(edits=(edit,)), tmp_path / name) if name else [])
                answers = sampler.sample(CHATS, params, constraint=constraint)
                drawn.append([[answer.token_ids for answer in own] for own in answers])
        found.append(drawn)
    plain, graphed = found
    assert graphed == plain
    assert graphed[0] == graphed[2] != graphed[1]
    assert graphed[3] == graphed[4]
