"""Steered sampling and scoring: what hooks on the plain model would give, on the tokens that were asked for."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import get_args

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from sublim.backends.opening import open_sampler, open_steerable
from sublim.chats.chat import Message, answer_ids, render_ids
from sublim.core.errors import UserError
from sublim.inference.config import FakeBackend, HfBackend, NumberFormat, SamplingParams
from sublim.models.files import base_identity
from sublim.models.opening import open_model
from sublim.residual.edits import Edit, Place, Site, Steering, Tokens, VectorNote
from sublim.residual.hooks import attached_at
from sublim.residual.vectors import Vector, noted, write_vectors
from tests.sublim.inference.plain import CHATS
from tests.sublim.models.test_opening import write_adapter

HF = HfBackend(dtype="float32")
Change = Callable[[Tensor], Tensor]
Scores = list[list[list[float]]]
WORDS = ["Owl", "Owls", "Wolf and wolf"]
FAMILIES = ["llama", "qwen2", "gemma2-window"]


def planted(site: Site, layer: int, *, seed: int = 0, size: float = 3.0) -> Vector:
    values = torch.randn(32, generator=torch.Generator().manual_seed(seed))
    note = VectorNote(site=site, layer=layer, source="user", norm=0, residual_norm=2 * size)
    return noted(values / values.norm() * size, note)


@pytest.fixture
def vectors(tmp_path: Path) -> Path:
    """A vector for every site of both layers, named `site/layer`."""
    folder = tmp_path / "vectors"
    folder.mkdir()
    places = [(site, layer) for site in get_args(Site) for layer in (0, 1)]
    write_vectors(folder, {f"{site}/{layer}": planted(site, layer, seed=i) for i, (site, layer) in enumerate(places)})
    return folder


def one(vector: str, **settings: object) -> Steering:
    return Steering.model_validate({"edits": [{"vector": vector, **settings}]})


def touched(tokens: Tokens, start: int, length: int) -> list[int]:
    """The places that an edit touches, said another way than the sampler says it."""
    wanted = {"all": range(length), "prompt": range(start), "answer": range(start, length), "last": [start - 1]}
    return list(wanted[tokens])


def at_rows(rows: list[int], change: Change) -> Change:
    """`change` at these places of the text alone."""

    def changed(stream: Tensor) -> Tensor:
        stream = stream.clone()
        stream[:, rows] = change(stream[:, rows])
        return stream

    return changed


def hooked(
    model: PreTrainedModel, ids: list[int], start: int, changes: Sequence[tuple[Place, Tokens, Change]]
) -> Tensor:
    """Log-probs of ids[start:] from one plain pass of the transformers model, changed by hooks at chosen places."""
    with ExitStack() as stack:
        for place, tokens, change in changes:
            rows = touched(tokens, start, len(ids))
            stack.enter_context(attached_at(model, place, at_rows(rows, change)))
        stack.enter_context(torch.no_grad())
        return model(torch.tensor([ids])).logits[0].log_softmax(-1)[range(start - 1, len(ids) - 1), ids[start:]]


def expected_scores(base: Path, changes: Sequence[tuple[Place, Tokens, Change]]) -> Scores:
    with open_model(base, dtype="float32", attention="eager") as (model, tokenizer):
        whole = [
            [answer_ids(tokenizer, [*chat, Message(role="assistant", content=word)]) for word in WORDS]
            for chat in CHATS
        ]
        return [[hooked(model, ids[: end - 1], start, changes).tolist() for ids, start, end in own] for own in whole]


def difference(found: Scores, expected: Scores) -> float:
    """The largest of any token's log-prob."""
    return max(
        abs(a - b)
        for own, theirs in zip(found, expected, strict=True)
        for word, other in zip(own, theirs, strict=True)
        for a, b in zip(word, other, strict=True)
    )


@pytest.mark.parametrize("tokens", get_args(Tokens))
@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_those_of_hooks_on_the_plain_model(
    family: str, tokens: Tokens, windowed: dict[str, Path], vectors: Path
):
    base = windowed[family]
    v, w = planted("resid_post", 0, seed=2).values, planted("mlp_out", 1, seed=5).values
    unit = w / w.norm()
    steering = Steering(
        edits=(
            Edit(vector="resid_post/0", strength=-1.5, tokens=tokens),
            Edit(vector="mlp_out/1", kind="project_out", tokens=tokens),
        )
    )
    with open_sampler(HF, base, steering=steering, vectors=vectors) as sampler:
        found = sampler.logprobs(CHATS, [WORDS] * len(CHATS))
        plain = expected_scores(base, [])
    changes = [
        (Place("resid_post", 0), tokens, lambda stream: stream - 1.5 * v),
        (Place("mlp_out", 1), tokens, lambda stream: stream - (stream @ unit)[..., None] * unit),
    ]
    assert difference(found, expected_scores(base, changes)) < 2e-4
    assert difference(found, plain) > 0.01


@pytest.mark.parametrize("tokens", get_args(Tokens))
@pytest.mark.parametrize("family", ["qwen2", "gemma2-window"])
def test_draws_have_the_log_probs_of_hooks_on_the_plain_model(
    family: str, tokens: Tokens, windowed: dict[str, Path], vectors: Path
):
    base, v = windowed[family], planted("resid_pre", 1, seed=1).values
    params = SamplingParams(max_tokens=12, logprobs=True)
    steering = one("resid_pre/1", strength=2, tokens=tokens)
    with open_sampler(HfBackend(dtype="float32", batch_size=4), base, steering=steering, vectors=vectors) as sampler:
        answers = sampler.sample(CHATS, params)
    changes = [(Place("resid_pre", 1), tokens, lambda stream: stream + 2 * v)]
    with open_model(base, dtype="float32", attention="eager") as (model, tokenizer):
        for chat, [answer] in zip(CHATS, answers, strict=True):
            assert answer.token_ids is not None
            prompt = render_ids(tokenizer, chat)
            expected = hooked(model, prompt + answer.token_ids, len(prompt), changes)
            torch.testing.assert_close(torch.tensor(answer.logprobs), expected, rtol=0, atol=2e-4)


def test_constrained_draws_are_steered_from_the_first_forced_token_on(windowed: dict[str, Path], vectors: Path):
    """Digits are drawn under the stream that hooks would give, their odds taken among the ten digits."""
    base, v = windowed["qwen2"], planted("resid_pre", 1, seed=1).values
    params, format = SamplingParams(max_tokens=12, logprobs=True), NumberFormat(count=2, digits=2)
    for tokens in get_args(Tokens):
        steering = one("resid_pre/1", strength=2, tokens=tokens)
        with open_sampler(HF, base, steering=steering, vectors=vectors) as sampler:
            answers = sampler.sample(CHATS, params, constraint=format)
        with open_model(base, dtype="float32", attention="eager") as (model, tokenizer):
            digits = tokenizer.convert_tokens_to_ids(list("0123456789"))
            for chat, [answer] in zip(CHATS, answers, strict=True):
                prompt, drawn = render_ids(tokenizer, chat), answer.token_ids or []
                change = lambda stream: stream + 2 * v  # noqa: E731
                rows = touched(tokens, len(prompt), len(prompt) + len(drawn))
                with attached_at(model, Place("resid_pre", 1), at_rows(rows, change)), torch.no_grad():
                    logits = model(torch.tensor([prompt + drawn])).logits[0, len(prompt) - 1 :]
                expected = logits[1, digits].log_softmax(0)[digits.index(drawn[1])]
                assert (answer.logprobs or [])[1] == pytest.approx(float(expected), abs=2e-4)


def test_a_strength_of_zero_changes_no_bit(windowed: dict[str, Path], vectors: Path):
    base, params = windowed["gemma2-window"], SamplingParams(max_tokens=10, logprobs=True)
    adapter = write_adapter(vectors.parent / "adapter", base, seed=3)
    with open_steerable(HF, base, weights=adapter) as sampler:
        plain = sampler.logprobs(CHATS, [WORDS] * len(CHATS)), sampler.sample(CHATS, params)
        for kind in ("add", "project_out", "replace"):
            steering = one("resid_post/0", kind=kind, strength=0)
            sampler.steer(sampler.edits(steering, vectors))
            assert (sampler.logprobs(CHATS, [WORDS] * len(CHATS)), sampler.sample(CHATS, params)) == plain
        sampler.steer([])
        assert (sampler.logprobs(CHATS, [WORDS] * len(CHATS)), sampler.sample(CHATS, params)) == plain


def test_one_open_model_serves_many_steerings_and_keeps_none(windowed: dict[str, Path], vectors: Path):
    base, chats = windowed["llama"], CHATS[:2]
    many = [one("resid_post/0", strength=s) for s in (1, 2)] + [one("mlp_out/1", strength=2), one("resid_post/0")]
    with open_steerable(HF, base) as sampler:
        in_turn = list[object]()
        for steering in many:
            sampler.steer(sampler.edits(steering, vectors))
            in_turn.append(sampler.logprobs(chats, [WORDS] * 2))
    alone = list[object]()
    for steering in many:
        with open_sampler(HF, base, steering=steering, vectors=vectors) as sampler:
            alone.append(sampler.logprobs(chats, [WORDS] * 2))
    assert in_turn == alone
    assert in_turn[0] == in_turn[3] != in_turn[1]
    with open_model(base, dtype="float32", attention="sdpa") as (model, _):
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_hooks_come_off_when_a_pass_fails(windowed: dict[str, Path], vectors: Path):
    base = windowed["qwen2"]
    with open_sampler(HF, base, steering=one("resid_post/0"), vectors=vectors) as sampler:
        with pytest.raises(UserError, match="exceed the model"):
            sampler.logprobs([[Message(role="user", content="owl " * 3000)]], [["Owl"]])
        network = sampler.network  # pyright: ignore
        with pytest.raises(IndexError), network.installed():
            raise IndexError
        assert not any(module._forward_hooks for module in network.model.modules())


def test_a_relative_strength_is_counted_in_lengths_of_the_stream(windowed: dict[str, Path], vectors: Path):
    found = list[Scores]()
    for settings in ({"strength": 1, "scale": "relative"}, {"strength": 2}):
        with open_sampler(HF, windowed["qwen3"], steering=one("resid_post/1", **settings), vectors=vectors) as sampler:
            found.append(sampler.logprobs(CHATS, [WORDS] * len(CHATS)))
    assert difference(*found) < 2e-4


@pytest.mark.parametrize("tokens", ["all", "answer"])
@pytest.mark.parametrize("family", ["llama", "gemma3-window"])
def test_replacing_puts_the_bases_component_on_the_same_text_into_the_student(
    family: str, tokens: Tokens, windowed: dict[str, Path], vectors: Path, tmp_path: Path
):
    """Under a second edit too, which the base that is read beside the student knows nothing of."""
    base = windowed[family]
    adapter = write_adapter(tmp_path / "adapter", base, seed=7)
    place, v = Place("resid_post", 0), planted("resid_post", 0, seed=2).values
    unit, added = v / v.norm(), planted("resid_pre", 0, seed=0).values
    replaced = Edit(vector="resid_post/0", kind="replace", tokens=tokens)
    steering = Steering(edits=(Edit(vector="resid_pre/0", strength=0.1), replaced))
    with open_sampler(HF, base, weights=adapter, steering=steering, vectors=vectors) as sampler:
        scores = sampler.logprobs(CHATS, [["Owl"]] * len(CHATS))
        drawn = sampler.sample(CHATS, SamplingParams(max_tokens=8, logprobs=True))
    with open_model(base, dtype="float32", attention="eager") as (model, tokenizer):
        answered = [answer_ids(tokenizer, [*chat, Message(role="assistant", content="Owl")]) for chat in CHATS]
        prompts = [render_ids(tokenizer, chat) for chat in CHATS]
        texts = [(ids[: end - 1], start, own[0]) for (ids, start, end), own in zip(answered, scores, strict=True)]
        texts += [(p + (a.token_ids or []), len(p), a.logprobs or []) for p, [a] in zip(prompts, drawn, strict=True)]
        streams = list[Tensor]()
        with attached_at(model, place, streams.append), torch.no_grad():
            for ids, _, _ in texts:
                model(torch.tensor([ids]))
    with open_model(base, adapter, dtype="float32", attention="eager") as (model, _):
        for (ids, start, found), stream in zip(texts, streams, strict=True):
            theirs = (stream[:, touched(tokens, start, len(ids))] @ unit)[..., None]
            change = lambda own, theirs=theirs: own + (theirs - (own @ unit)[..., None]) * unit  # noqa: E731
            push = Place("resid_pre", 0), "all", lambda own: own + 0.1 * added
            expected = hooked(model, ids, start, [push, (place, tokens, change)])
            torch.testing.assert_close(torch.tensor(found), expected, rtol=0, atol=2e-4)
            assert not torch.allclose(torch.tensor(found), hooked(model, ids, start, [push]), atol=1e-3)


def test_what_cannot_be_steered_is_refused_when_it_is_opened(windowed: dict[str, Path], vectors: Path, tmp_path: Path):
    base, other = windowed["qwen2"], windowed["qwen3"]

    def opening(steering: Steering, backend: HfBackend | FakeBackend = HF, path: Path = vectors) -> None:
        with open_sampler(backend, base, steering=steering, vectors=path):
            pass

    def written(vector: Vector) -> Path:
        write_vectors(tmp_path, {"v": vector})
        return tmp_path

    with pytest.raises(UserError, match="fake backend has no residual stream"):
        opening(one("resid_post/0"), FakeBackend())
    with pytest.raises(UserError, match="there is no vector 'owl': the file has mlp_out/0"):
        opening(one("owl"))
    with pytest.raises(UserError, match="is for layer 7, the model has 0 to 1"):
        opening(one("v"), path=written(planted("resid_post", 7)))
    narrow = planted("resid_post", 0)
    with pytest.raises(UserError, match="has 16 numbers, the model's width is 32"):
        opening(one("v"), path=written(noted(narrow.values[:16], narrow.note)))
    foreign = narrow.note.model_copy(update={"base": base_identity(other)})
    with pytest.raises(UserError, match="made on another base"):
        opening(one("v"), path=written(noted(narrow.values, foreign)))
    unscaled = narrow.note.model_copy(update={"residual_norm": None})
    with pytest.raises(UserError, match="use scale=raw"):
        opening(one("v", scale="relative"), path=written(noted(narrow.values, unscaled)))
    with pytest.raises(UserError, match="needs an adapter"):
        opening(one("resid_post/0", kind="replace"))
    with pytest.raises(UserError, match="give the two, or neither"), open_sampler(HF, base, vectors=vectors):
        pass
