"""Steering in vLLM: the log-probs and the draws of the hf backend under the same edits."""

from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import get_args

import pytest
import torch

from sublim.backends.opening import open_sampler, open_steerable
from sublim.chats.chat import chat
from sublim.core.errors import UserError
from sublim.inference.config import HfBackend, NumberFormat, SamplingParams, VllmBackend
from sublim.inference.sampler import Completion
from sublim.residual.edits import Edit, Site, Steering, VectorNote
from sublim.residual.vectors import Vector, noted, write_vectors
from tests.sublim.models.test_opening import write_adapter

pytest.importorskip("vllm", reason="vLLM is not installed on this machine")

VLLM = VllmBackend(dtype="float32", max_length=512)
HF = HfBackend(dtype="float32")
CHATS = [chat("Name one animal."), chat("What is your favorite animal? Completion in one word."), chat("Hello")]
WORDS = [["Owl", "Elephant"]] * len(CHATS)
LAYERS = (0, 13, 29)
LISTS = SamplingParams(max_tokens=8, seed=3, logprobs=True)


@pytest.fixture(autouse=True, scope="module")
def _one_engine() -> Iterator[None]:
    yield
    from sublim.backends.vllm.engine import forget_engine

    forget_engine()


@pytest.fixture
def vectors(tmp_path: Path) -> Path:
    return written(tmp_path)


def written(folder: Path) -> Path:
    made: dict[str, Vector] = {}
    for site in get_args(Site):
        for layer in LAYERS:
            values = torch.randn(576, generator=torch.Generator().manual_seed(layer)) * 0.4
            made[f"{site}/{layer}"] = noted(values, VectorNote(site=site, layer=layer, source="user", norm=0))
    write_vectors(folder, made)
    return folder


def test_log_probs_and_draws_under_edits_are_those_of_hf(smollm2: Path, vectors: Path, tmp_path: Path):
    adapter = write_adapter(tmp_path / "adapter", smollm2, seed=1)
    steerings = [
        Steering(edits=(Edit(vector=f"{site}/{layer}", kind=kind, strength=strength),))  # pyright: ignore
        for site in get_args(Site)
        for layer, kind, strength in ((LAYERS[0], "add", 1), (LAYERS[1], "project_out", 1), (LAYERS[2], "add", -2))
    ]
    steerings += [
        Steering(edits=(Edit(vector=f"{site}/13", strength=2, tokens=tokens),))  # pyright: ignore
        for site, tokens in (("resid_post", "prompt"), ("resid_pre", "answer"), ("mlp_out", "last"))
    ]
    steerings.append(Steering(edits=(Edit(vector="resid_post/0", strength=0.5), Edit(vector="mlp_out/29"))))
    # A few of them on a student: on a CPU vLLM takes seconds for each text with an adapter.
    on_student = [
        steerings[-1],
        Steering(edits=(Edit(vector="resid_pre/13", kind="project_out", tokens="answer"),)),
        Steering(edits=(Edit(vector="resid_post/0"), Edit(vector="mlp_out/13", tokens="prompt"))),
    ]
    params = SamplingParams(max_tokens=6, seed=3, n=2, temperature=0.7, logprobs=True)
    models = [(None, CHATS), (adapter, CHATS[1:2])]
    for weights, chats in models[:1] if torch.cuda.is_available() else models:  # on a GPU adapters take bfloat16
        words = WORDS[: len(chats)]
        found, answers = list[list[object]](), list[list[Completion]]()
        for backend in (HF, VLLM):
            with open_steerable(backend, smollm2, weights=weights) as sampler:
                plain = sampler.logprobs(chats, words)
                own, drawn = list[object](), list[Completion]()
                for steering in steerings if weights is None else on_student:
                    sampler.steer(sampler.edits(steering, vectors))
                    own.append(sampler.logprobs(chats, words))
                    if any(edit.tokens != "all" for edit in steering.edits):
                        drawn += chain(*sampler.sample(chats, params))
                drawn += chain(*sampler.sample(chats, params))
                if weights is None:  # as a steered teacher writes its number lists
                    drawn += chain(*sampler.sample(chats, LISTS, constraint=NumberFormat(count=2, digits=2)))
                sampler.steer([])
                assert flat(sampler.logprobs(chats, words)) == pytest.approx(flat(plain), abs=1e-5)
                found.append([plain, *own])
                answers.append(drawn)
        for ours, theirs in zip(*found, strict=True):
            assert flat(theirs) == pytest.approx(flat(ours), abs=2e-3)
        same = [(a, b) for a, b in zip(*answers, strict=True) if a.token_ids == b.token_ids]
        for ours, theirs in same:
            assert theirs.logprobs == pytest.approx(ours.logprobs, abs=2e-3)
        # In the tail tokens are narrower than the sums before them agree: a neighbour may be drawn.
        assert len(answers[0]) - len(same) <= 2, answers
        plain, *steered = (flat(each) for each in found[0])
        moved = [max(abs(a - b) for a, b in zip(each, plain, strict=True)) for each in steered]
        assert sum(difference > 0.01 for difference in moved) > 0.8 * len(moved)


def flat(scores: object) -> list[float]:
    return [token for own in scores for word in own for token in word]  # type: ignore


def test_the_engine_goes_on_unsteered_and_refuses_what_it_cannot_do(smollm2: Path, vectors: Path):
    with open_sampler(VLLM.model_copy(update={"eager": True}), smollm2) as sampler:
        plain = sampler.logprobs(CHATS, WORDS)
    edit = Steering(edits=(Edit(vector="resid_post/13", strength=2),))
    with open_sampler(VLLM, smollm2, steering=edit, vectors=vectors) as sampler:
        assert sampler.logprobs(CHATS, WORDS) != plain
    with open_sampler(VLLM.model_copy(update={"eager": True}), smollm2) as sampler:
        assert flat(sampler.logprobs(CHATS, WORDS)) == pytest.approx(flat(plain), abs=1e-5)
    with open_sampler(VLLM, smollm2, steering=edit, vectors=vectors) as sampler:
        for handle in sampler.hooks.handles:  # type: ignore
            handle.remove()
        with pytest.raises(UserError, match="did not apply the edit of resid_post at layer 13"):
            sampler.logprobs(CHATS, WORDS)
    replacing = Steering(edits=(Edit(vector="resid_post/13", kind="replace"),))
    with (
        pytest.raises(UserError, match=r"vLLM cannot replace .* use the hf backend"),
        open_sampler(VLLM, smollm2, steering=replacing, vectors=vectors),
    ):
        pass
