"""hf and vllm on the bundled model in float32: equal where they must be, and the check sees what it is there for."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from sublim.backends.opening import open_sampler
from sublim.chats.chat import Chat, render_ids
from sublim.inference.config import HfBackend, SamplingParams, VllmBackend
from sublim.models.opening import open_model
from tests.sublim.backends.agreement import (
    CHATS,
    DRAWN,
    adapters_in_float32,
    disagreements,
    evidence,
    plain_evidence,
    read,
)
from tests.sublim.models.test_opening import write_adapter

pytest.importorskip("vllm", reason="vLLM is not installed on this machine")

VLLM = VllmBackend(dtype="float32", max_length=512)
HF = HfBackend(dtype="float32")


@pytest.fixture(scope="module")
def adapter(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Changes what the model says without making it babble."""
    made = write_adapter(tmp_path_factory.mktemp("adapters") / "owl", smollm2, seed=1)
    tensors = load_file(made / "adapter_model.safetensors")
    save_file({name: tensor * 0.4 for name, tensor in tensors.items()}, made / "adapter_model.safetensors")
    return made


def test_vllm_agrees_with_hf(smollm2: Path):
    plain = plain_evidence(smollm2)
    with open_sampler(VLLM, smollm2) as sampler:
        written = evidence(sampler)
        # The other way round: hf's draws are as likely in vLLM as hf says.
        own = [answer for answers in plain.drawn for answer in answers]
        prompts = [ids for ids in sampler.prompts(CHATS) for _ in range(DRAWN.n)]  # pyright: ignore
        scored = sampler.score([(p + (a.token_ids or []), len(p)) for p, a in zip(prompts, own, strict=True)])  # pyright: ignore
    assert list(disagreements(plain, written, lambda: read(smollm2, None, written.drawn), shared=True)) == []
    for answer, scores in zip(own, scored, strict=True):
        assert scores == pytest.approx(answer.logprobs, abs=1e-3)


@adapters_in_float32
def test_vllm_agrees_with_hf_about_an_adapter(smollm2: Path, adapter: Path):
    with open_sampler(HF, smollm2, weights=adapter) as sampler:
        ours = evidence(sampler)
    with open_sampler(VLLM, smollm2, weights=adapter) as sampler:
        theirs = evidence(sampler)
    assert list(disagreements(ours, theirs, lambda: read(smollm2, adapter, theirs.drawn), shared=True)) == []
    assert ours.greedy != plain_evidence(smollm2).greedy, "the adapter changes nothing, so nothing was shown"


def top_k(monkeypatch: pytest.MonkeyPatch) -> None:
    from sublim.backends.vllm import draws

    plainly = draws.draw

    def drawn(logits: torch.Tensor, *rest: Any) -> Any:
        least = logits.topk(50).values[:, -1:]
        return plainly(logits, *rest)._replace(tokens=plainly(logits.masked_fill(logits < least, -torch.inf), *rest)[0])

    monkeypatch.setattr(draws, "draw", drawn)


def repetition_penalty(monkeypatch: pytest.MonkeyPatch) -> None:
    from sublim.backends.vllm import draws

    plainly = draws.Draws.apply

    def apply(self: Any, logits: torch.Tensor) -> torch.Tensor:
        for place, row in self.rows.items():
            for token in set(row.written):
                score = logits[place, token]
                logits[place, token] = score / 1.3 if score > 0 else score * 1.3
        return plainly(self, logits)

    monkeypatch.setattr(draws.Draws, "apply", apply)


def second_bos(monkeypatch: pytest.MonkeyPatch) -> None:
    from sublim.backends.vllm import sampler as vllm

    plainly = vllm.prompt_ids

    def doubled(tokenizer: Any, chats: Sequence[Chat]) -> list[list[int]]:
        return [[tokenizer.bos_token_id, *ids] for ids in plainly(tokenizer, chats)]

    monkeypatch.setattr(vllm, "prompt_ids", doubled)


@pytest.mark.parametrize("mutation", [top_k, repetition_penalty, second_bos])
def test_a_hidden_default_of_one_backend_is_seen(mutation: Any, smollm2: Path, monkeypatch: pytest.MonkeyPatch):
    mutation(monkeypatch)
    with open_sampler(VLLM, smollm2) as sampler:
        written = evidence(sampler)
    plain = plain_evidence(smollm2)
    assert next(disagreements(plain, written, lambda: read(smollm2, None, written.drawn), shared=True))


@pytest.mark.slow
def test_in_bfloat16_the_first_difference_is_a_tie(smollm2: Path):
    """Two kernels round differently; where their greedy answers part, both tokens are as good as each other."""
    answers = list[list[list[int]]]()
    for backend in (HF.model_copy(update={"dtype": "bfloat16"}), VLLM.model_copy(update={"dtype": "bfloat16"})):
        with open_sampler(backend, smollm2) as sampler:
            greedy = SamplingParams(max_tokens=24, temperature=0)
            answers.append([own[0].token_ids or [] for own in sampler.sample(CHATS, greedy)])
    gaps = list[float]()
    with open_model(smollm2, dtype="float32", attention="eager") as (model, tokenizer), torch.no_grad():
        for one, ours, theirs in zip(CHATS, *answers, strict=True):
            prompt = render_ids(tokenizer, one)
            logits = model(torch.tensor([prompt + ours])).logits[0, len(prompt) - 1 : -1]
            best = logits.topk(2).values
            gaps += (best[:, 0] - best[:, 1]).tolist()
            parted = next((k for k, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), None)
            if parted is not None:
                # Logits near 20 lie 0.125 apart in bfloat16; each of the two may be off by one step.
                assert abs(logits[parted, ours[parted]] - logits[parted, theirs[parted]]) <= 0.25
    assert sum(gap > 0.25 for gap in gaps) > 0.8 * len(gaps), "the tolerance would pass anything"
