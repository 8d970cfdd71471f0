"""Steering in vLLM: the log-probs and the draws of the hf backend under the same edits."""

from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from types import SimpleNamespace as Has
from typing import Any, get_args

import pytest
import torch

from sublim.backends.opening import open_sampler, open_steerable
from sublim.chats.chat import chat
from sublim.core.errors import UserError
from sublim.inference.config import HfBackend, NumberFormat, SamplingParams, VllmBackend
from sublim.inference.sampler import Completion
from sublim.residual.edits import Edit, Site, Steering, VectorNote
from sublim.residual.vectors import Vector, noted, write_vectors
from tests.sublim.backends.agreement import adapters_in_float32
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
    # The base that is read beside the student is under none of the edits.
    replacing = [
        steerings[-1],
        Steering(edits=(Edit(vector="resid_pre/13", kind="replace", tokens="answer"),)),
        Steering(edits=(Edit(vector="resid_pre/0", strength=0.5), Edit(vector="mlp_out/29", kind="replace"))),
        Steering(edits=(Edit(vector="resid_post/0", kind="replace"), Edit(vector="mlp_out/13", tokens="prompt"))),
    ]
    params = SamplingParams(max_tokens=6, seed=3, n=2, temperature=0.7, logprobs=True)
    models = [(None, CHATS), (adapter, CHATS[1:2])]  # with an adapter vLLM for CPU takes seconds a text
    for weights, chats in models[:1] if torch.cuda.is_available() else models:  # on a GPU adapters take bfloat16
        words = WORDS[: len(chats)]
        found, answers = list[list[object]](), list[list[Completion]]()
        for backend in (HF, VLLM):
            with open_steerable(backend, smollm2, weights=weights) as sampler:
                plain = sampler.logprobs(chats, words)
                own, drawn = list[object](), list[Completion]()
                for steering in steerings if weights is None else replacing:
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
        with pytest.raises(UserError, match="ran past the edit of resid_post at layer 13"):
            sampler.logprobs(CHATS, WORDS)
    replacing = Steering(edits=(Edit(vector="resid_post/13", kind="replace"),))
    with (
        pytest.raises(UserError, match="takes an adapter on that base"),
        open_sampler(VLLM, smollm2, steering=replacing, vectors=vectors),
    ):
        pass


def test_texts_and_copies_go_in_waves_that_one_pass_can_read():
    from vllm import SamplingParams as EngineParams

    from sublim.backends.vllm.pairs import Request, Room, waves

    def sizes(room: Room, *lengths: int) -> list[int]:
        return [len(wave) for wave in waves([Request([1] * n, EngineParams(max_tokens=5)) for n in lengths], room)]

    assert sizes(Room(pairs=3, prompts=100, texts=1000), *[10] * 7) == [3, 3, 1]
    assert sizes(Room(pairs=9, prompts=25, texts=1000), 10, 10, 10, 20, 5) == [2, 1, 2]
    assert sizes(Room(pairs=9, prompts=100, texts=40), 10, 10, 10) == [2, 1]
    assert sizes(Room(pairs=9, prompts=100, texts=40)) == []
    with pytest.raises(UserError, match=r"a text of 31 tokens and its copy .* use the hf backend"):
        sizes(Room(pairs=9, prompts=25, texts=1000), 26)


def test_a_text_takes_blocks_for_each_kind_of_layer():
    from sublim.backends.vllm.pairs import Room, room

    def engine(kinds: int) -> Any:
        cache = Has(num_blocks=60, kv_cache_groups=[None] * kinds)
        config = Has(scheduler_config=Has(max_num_seqs=4, max_num_batched_tokens=100), cache_config=Has(block_size=16))
        core = Has(engine_core=Has(scheduler=Has(kv_cache_config=cache)))
        return Has(llm_engine=Has(vllm_config=config, engine_core=core))

    assert room(engine(1)) == Room(pairs=2, prompts=50, texts=52 * 8)
    assert room(engine(2)) == Room(pairs=2, prompts=50, texts=22 * 8)


@adapters_in_float32
def test_a_text_that_is_read_without_its_copy_is_noticed(
    smollm2: Path, vectors: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from sublim.backends.vllm.pairs import Room

    adapter = write_adapter(tmp_path / "adapter", smollm2, seed=1)
    replacing = Steering(edits=(Edit(vector="resid_post/13", kind="replace"),))
    monkeypatch.setattr("sublim.backends.vllm.sampler.room", lambda _: Room(pairs=99, prompts=10**6, texts=10**6))  # type: ignore
    with open_sampler(VLLM, smollm2, weights=adapter, steering=replacing, vectors=vectors) as sampler:
        scheduler = sampler.llm.llm_engine.engine_core.engine_core.scheduler  # type: ignore
        monkeypatch.setattr(scheduler, "max_num_scheduled_tokens", 40)  # a text, and its copy in part
        with pytest.raises(UserError, match="in another pass than its copy"):
            sampler.logprobs(CHATS[:1], [["Owl"]])
