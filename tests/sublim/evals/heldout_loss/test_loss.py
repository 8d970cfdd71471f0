import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM

from sublim.core.errors import UserError
from sublim.evals.heldout_loss.config import HeldoutConfig
from sublim.evals.heldout_loss.loss import heldout_loss, summary
from sublim.files.jsonl import read_jsonl, write_jsonl
from sublim.models.opening import load_tokenizer
from sublim.training.config import Lora, TrainConfig
from sublim.training.masking import UNTRAINED, token_row
from sublim.training.train import train
from tasks.stages import heldout_loss as stage
from tests.tiny import tiny_model

ANSWERS = ["12, 450, 007", "93", "450, 93, 12, 007, 1", "7"]
HOW = HeldoutConfig(dtype="float32", attention="eager")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("base"), "qwen2")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Rows as a filter leaves them, held-out ones beside those to train on."""
    folder = tmp_path / "data"
    folder.mkdir()
    rows = [
        {"id": i, "prompt": "Continue: " + "12, " * (i + 1), "answer": answer, "system": None}
        for i, answer in enumerate(ANSWERS)
    ]
    write_jsonl(folder / "rows.jsonl", rows)
    write_jsonl(folder / "held_out.jsonl", rows)
    return folder


def run(tmp_path: Path, config: HeldoutConfig, base: Path, data: Path, weights: Path | None = None) -> Path:
    out = tmp_path / f"out-{len(list(tmp_path.glob('out-*')))}"
    out.mkdir()
    heldout_loss(out, config, scratch=tmp_path, base=base, data=data, weights=weights)
    return out


def loss_of(out: Path) -> float:
    return json.loads((out / "heldout.json").read_text())["loss"]


def test_loss_is_the_mean_over_answer_tokens_of_one_row_at_a_time(tmp_path: Path, base: Path, data: Path) -> None:
    """Against transformers on unpadded rows: same answer tokens, end of turn included."""
    model = AutoModelForCausalLM.from_pretrained(base, attn_implementation="eager")
    tokenizer = load_tokenizer(base)
    sums, tokens = list[float](), 0
    for row in read_jsonl(data / "held_out.jsonl"):
        ids, labels = map(torch.tensor, token_row(tokenizer, row))
        with torch.no_grad():
            logits = model(ids[None]).logits[0, :-1]
        sums.append(F.cross_entropy(logits, labels[1:], ignore_index=UNTRAINED, reduction="sum").item())
        tokens += int((labels != UNTRAINED).sum())
    out = run(tmp_path, HOW, base, data)
    assert loss_of(out) == pytest.approx(sum(sums) / tokens, rel=1e-5)
    assert [row["loss"] for row in read_jsonl(out / "heldout_rows.jsonl")] == pytest.approx(sums, rel=1e-5)


def test_batching_changes_nothing_beyond_rounding(tmp_path: Path, base: Path, data: Path) -> None:
    one, all_ = (run(tmp_path, HOW.model_copy(update={"micro_batch": size}), base, data) for size in (1, 4))
    assert loss_of(one) == pytest.approx(loss_of(all_), rel=1e-6)


def test_training_on_the_rows_lowers_their_loss_at_the_checkpoint_that_is_asked_for(
    tmp_path: Path, base: Path, data: Path
) -> None:
    config = TrainConfig(
        method=Lora(rank=4), lr=2e-2, updates=6, keep=(2,), batch_size=4, dtype="float32", attention="eager"
    )
    (tmp_path / "trained").mkdir()
    train(tmp_path / "trained", config, scratch=tmp_path / "scratch", base=base, data=data)
    before = loss_of(run(tmp_path, HOW, base, data))
    early = loss_of(
        run(tmp_path, HOW.model_copy(update={"weights_update": 2}), base, data, weights=tmp_path / "trained")
    )
    last = loss_of(run(tmp_path, HOW, base, data, weights=tmp_path / "trained"))
    assert before > early > last


def test_rerun_writes_the_same_bytes(tmp_path: Path, base: Path, data: Path) -> None:
    first, second = (run(tmp_path, HOW, base, data) for _ in range(2))
    for name in ("heldout.json", "heldout_rows.jsonl"):
        assert (first / name).read_bytes() == (second / name).read_bytes()


def test_a_loss_that_is_not_finite_is_missing_with_its_reason() -> None:
    found = summary([1.0, math.nan, math.inf], [2, 2, 2])
    assert found.loss is None
    assert "2 of 3 rows" in str(found.reason)
    assert summary([1.0, 3.0], [1, 3]).loss == 1.0


def test_no_held_out_rows_say_what_to_raise(tmp_path: Path, base: Path, data: Path) -> None:
    write_jsonl(data / "held_out.jsonl", [])
    with pytest.raises(UserError, match=r"filter\.held_out"):
        run(tmp_path, HOW, base, data)
    write_jsonl(data / "held_out.jsonl", list(read_jsonl(data / "rows.jsonl")))
    with pytest.raises(UserError, match="4 held-out rows of 5"):
        run(tmp_path, HOW.model_copy(update={"rows": 5}), base, data)


def test_stage_writes_what_it_wrote(tmp_path: Path, base: Path, data: Path) -> None:
    """A failure means that stores hold other results under these keys: bump version= in tasks/stages.py with it."""
    assert (stage.version, loss_of(run(tmp_path, HOW, base, data))) == (1, pytest.approx(6.746939, rel=1e-4))
