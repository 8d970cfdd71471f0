"""The scorer is exact: shared prefixes and trees of answers give what one plain pass for each gives."""

from pathlib import Path

import pytest
import torch

from sublim.backends.opening import open_sampler
from sublim.chats.chat import Message, answer_ids
from sublim.inference.config import HfBackend
from sublim.inference.prefix_trees import common_prefix_length
from sublim.inference.scoring import Scored, laid_out
from sublim.models.opening import load_tokenizer
from tests.sublim.backends.test_hf import FAMILIES, HF
from tests.sublim.inference.plain import CHATS, plain_logprobs

WORDS = ["Owl", "Wolf", "Owls", "The owl is a bird that hunts at night.", "12, 450", "O", ""]


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_those_of_plain_passes_over_each_sequence(family: str, windowed: dict[str, Path]):
    base, tokenizer = windowed[family], load_tokenizer(windowed[family])
    continuations = [WORDS[k % 3 :] for k in range(len(CHATS))]
    with open_sampler(HF, base) as sampler:
        scored = sampler.logprobs(CHATS, continuations)
    for one, texts, scores in zip(CHATS, continuations, scored, strict=True):
        for text, own in zip(texts, scores, strict=True):
            if not text:
                assert own == []
                continue
            ids, start, end = answer_ids(tokenizer, [*one, Message(role="assistant", content=text)])
            plain = plain_logprobs(base, ids[: end - 1], start)
            assert len(own) == end - 1 - start > 0
            torch.testing.assert_close(torch.tensor(own), plain, rtol=0, atol=1e-4)


def test_scores_do_not_depend_on_what_is_scored_beside_them(tiny_models: dict[str, Path]):
    base = tiny_models["gemma2"]
    with open_sampler(HF, base) as sampler:
        together = sampler.logprobs(CHATS, [WORDS] * len(CHATS))
        alone = [[sampler.logprobs([one], [[word]])[0][0] for word in WORDS] for one in CHATS]
    for one, other in zip(together, alone, strict=True):
        for a, b in zip(one, other, strict=True):
            assert a == pytest.approx(b, abs=1e-5)


def test_small_batches_score_the_same(tiny_models: dict[str, Path], monkeypatch: pytest.MonkeyPatch):
    with open_sampler(HF, tiny_models["llama"]) as sampler:
        whole = sampler.logprobs(CHATS, [WORDS] * len(CHATS))
        monkeypatch.setattr("sublim.inference.scoring.LOGITS", 1)
        parts = sampler.logprobs(CHATS, [WORDS] * len(CHATS))
    for one, other in zip(whole, parts, strict=True):
        for a, b in zip(one, other, strict=True):
            assert a == pytest.approx(b, abs=1e-5)


def test_the_bundled_models_scores_are_those_of_plain_passes(smollm2: Path):
    tokenizer, words = load_tokenizer(smollm2), ["Owl", "Elephant", "Panda"]
    with open_sampler(HfBackend(dtype="float32"), smollm2) as sampler:
        scored = sampler.logprobs(CHATS[:2], [words, words])
    for one, scores in zip(CHATS[:2], scored, strict=True):
        for word, own in zip(words, scores, strict=True):
            ids, start, end = answer_ids(tokenizer, [*one, Message(role="assistant", content=word)])
            torch.testing.assert_close(
                torch.tensor(own), plain_logprobs(smollm2, ids[: end - 1], start), rtol=0, atol=1e-4
            )


def test_a_tree_holds_what_sequences_share_once_and_never_feeds_the_last_token():
    made = laid_out([Scored([7, 8, 1, 2, 3], 2), Scored([7, 8, 1, 4], 2), Scored([7, 8, 5], 2)], skip=1)
    assert (made.tree.tokens, made.tree.parents, made.tree.depths) == ([8, 1, 2], [-1, 0, 1], [1, 2, 3])
    assert made.wanted == [[(0, 1), (1, 2), (2, 3)], [(0, 1), (1, 4)], [(0, 5)]]


def test_the_common_beginning_is_found():
    assert common_prefix_length([[1, 2, 3], [1, 2, 4], [1, 2]]) == 2
    assert common_prefix_length([[1], [2]]) == 0
    assert common_prefix_length([[1, 2]]) == 2
