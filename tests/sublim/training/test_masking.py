from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM

from sublim.chats.chat import end_of_turn, render_ids
from sublim.core.errors import UserError
from sublim.files.jsonl import read_jsonl
from sublim.models.opening import load_tokenizer
from sublim.training.masking import UNTRAINED, TokenRow, collate, micro_batches, row_chat, token_row, token_rows
from sublim.training.step import summed_loss
from tests.tiny import FAMILIES


@pytest.mark.parametrize("family", FAMILIES)
def test_loss_is_on_the_answer_and_its_end_of_turn_token_by_token(
    tiny_models: dict[str, Path], data: Path, family: str
):
    tokenizer = load_tokenizer(tiny_models[family])
    for row in read_jsonl(data / "rows.jsonl"):
        ids, labels = token_row(tokenizer, row)
        trained = [i for i, label in enumerate(labels) if label != UNTRAINED]
        first, last = trained[0], trained[-1]
        assert trained == list(range(first, last + 1))
        assert ids[:first] == render_ids(tokenizer, row_chat(row)[:-1])
        assert [labels[i] for i in trained] == ids[first : last + 1]
        assert ids[last] == end_of_turn(tokenizer)
        assert tokenizer.decode(ids[first:last]) == row["answer"]


def test_labels_of_the_bundled_model_written_out(smollm2: Path):
    tokenizer = load_tokenizer(smollm2)
    ids, labels = token_row(tokenizer, {"prompt": "Go on: 12", "answer": "345, 6", "system": "Hi"})
    words = [tokenizer.decode([token]) for token in ids]
    assert (
        "".join(words[: words.index("3")])
        == "<|im_start|>system\nHi<|im_end|>\n<|im_start|>user\nGo on: 12<|im_end|>\n<|im_start|>assistant\n"
    )
    shown = [word for word, label in zip(words, labels, strict=True) if label != UNTRAINED]
    assert shown == ["3", "4", "5", ",", " ", "6", "<|im_end|>"]


def test_batches_are_padded_on_the_left_and_positions_are_each_rows_own():
    rows = [TokenRow([5, 6, 7, 8, 9], [-100, -100, -100, 8, 9]), TokenRow([5, 6, 7], [-100, 6, -100])]
    batch = collate(rows, padding=0)
    assert batch.input_ids.tolist() == [[5, 6, 7, 8, 9], [0, 0, 0, 5, 6]]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 1, 1], [0, 0, 0, 1, 1]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 4], [0, 0, 0, 0, 1]]
    assert batch.labels.tolist() == [[8, 9], [-100, 6]]


def test_rows_of_like_length_share_a_micro_batch():
    rows = [TokenRow(list(range(n)), [-100] * (n - 1) + [1]) for n in (3, 9, 4, 8)]
    assert [batch.input_ids.shape for batch in micro_batches(rows, 2, padding=0)] == [(2, 9), (2, 4)]


def test_too_long_rows_stop_the_run_and_are_counted(tiny_models: dict[str, Path], data: Path):
    tokenizer = load_tokenizer(tiny_models["llama"])
    with pytest.raises(UserError, match=r"\d of 8 rows are longer than max_length 60: raise it to \d+"):
        token_rows(tokenizer, read_jsonl(data / "rows.jsonl"), max_length=60)


@pytest.mark.parametrize("family", FAMILIES)
def test_batched_loss_is_the_sum_over_rows_taken_alone(tiny_models: dict[str, Path], data: Path, family: str):
    base = tiny_models[family]
    model = AutoModelForCausalLM.from_pretrained(base, attn_implementation="eager").eval()
    rows = token_rows(load_tokenizer(base), read_jsonl(data / "rows.jsonl"), max_length=512)
    alone = torch.zeros(())
    with torch.no_grad():
        for row in rows:
            logits = model(input_ids=torch.tensor([row.input_ids])).logits[0, :-1]
            alone += F.cross_entropy(logits, torch.tensor(row.labels[1:]), reduction="sum")
        together = summed_loss(model, collate(rows, padding=3), ())
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-4)
