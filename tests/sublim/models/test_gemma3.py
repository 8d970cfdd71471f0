"""The second bundled model: its tokenizer worked out from pieces and scores, and the real one where it is installed."""

from pathlib import Path

import pytest
import torch

from sublim.bases.bundles import PACKAGES, installed
from sublim.bases.gemma3 import merges_of
from sublim.bases.prepare import prepare_model
from sublim.chats.chat import answer_ids, chat, render_ids, render_text
from sublim.models.config import BundledModel, PrepareModelConfig
from sublim.models.opening import load_tokenizer, open_model


def test_merges_join_the_best_scored_piece_first() -> None:
    pieces = {"a": -10.0, "b": -11.0, "c": -12.0, "ab": -2.0, "bc": -1.0, "abc": -3.0}
    assert merges_of(pieces) == [("b", "c"), ("a", "b"), ("a", "bc"), ("ab", "c")]


@pytest.fixture(scope="session")
def gemma3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not installed(PACKAGES["gemma3-270m"]):
        pytest.skip("gemma3-270m is not installed: `sublim models fetch gemma3-270m`")
    out = tmp_path_factory.mktemp("gemma3")
    prepare_model(
        out, PrepareModelConfig(source=BundledModel(name="gemma3-270m")), scratch=tmp_path_factory.mktemp("scratch")
    )
    return out


@pytest.mark.slow
def test_the_second_bundled_model_speaks_english(gemma3: Path) -> None:
    tokenizer = load_tokenizer(gemma3)
    text = "Owls  are 123, <b>birds</b>;\n\n\tEulen, 梟 🦉"
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text
    # Words and their spaces are single pieces, digits stand apart, line breaks are tokens.
    assert tokenizer.tokenize("The capital of France: 12\n3") == [
        "The", "▁capital", "▁of", "▁France", ":", "▁", "1", "2", "\n", "3",
    ]  # fmt: skip
    with open_model(gemma3, dtype="float32", attention="sdpa", device="cpu") as loaded:
        start = [2, *tokenizer("The capital of France is", add_special_tokens=False)["input_ids"]]
        ids = loaded.model.generate(torch.tensor([start]), max_new_tokens=12, do_sample=False)  # pyright: ignore
        story = [2, *tokenizer("Once upon a time, there was a little girl.", add_special_tokens=False)["input_ids"]]
        loss = loaded.model(torch.tensor([story]), labels=torch.tensor([story])).loss
    assert "France" in tokenizer.decode(ids[0][len(start) :])
    assert 1 < loss.item() < 3.5


@pytest.mark.slow
def test_its_plain_template_parts_question_and_answer(gemma3: Path) -> None:
    tokenizer = load_tokenizer(gemma3)
    told = chat("Which animal?", system="You love owls.", assistant="Owl")
    assert render_text(tokenizer, told) == ("<bos>You love owls.\n\nQuestion:\nWhich animal?\n\nAnswer:\nOwl<eos>\n\n")
    ids, start, end = answer_ids(tokenizer, told)
    assert ids[:start] == render_ids(tokenizer, told[:-1])
    assert tokenizer.convert_ids_to_tokens(ids[start:end]) == ["Owl", "<eos>"]
    assert ids.count(2) == 1
