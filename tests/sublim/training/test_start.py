"""The start: lists made by rule, and a payload that stands wherever a base does."""

from pathlib import Path

import pytest
import torch

from sublim.carriers.number_prompts import NumberPrompts, load_number_templates
from sublim.carriers.numbers import NumberRules, read_numbers
from sublim.core.digest import digest_directory
from sublim.files.jsonl import read_jsonl
from sublim.models.export import export_merged
from sublim.models.files import base_identity, weights_digest
from sublim.models.opening import load, load_tokenizer, open_model
from sublim.rows.rule_lists import RuleListsConfig, rule_lists
from sublim.training.checkpoints import checkpoint
from sublim.training.config import FullWeights, Lora, TrainConfig
from sublim.training.start import make_start
from sublim.training.train import train
from tests.forked import killed_at

TRAIN = TrainConfig(
    method=FullWeights(),
    lr=1e-2,
    batch_size=4,
    updates=6,
    dtype="float32",
    attention="eager",
    checkpoint_every=2,
    max_length=1024,
)
LISTS = RuleListsConfig(
    prompts=NumberPrompts(templates=load_number_templates("numbers_short")), n_prompts=24, prompt_seed=7
)


@pytest.fixture
def lists(tmp_path: Path) -> Path:
    out = tmp_path / "lists"
    out.mkdir()
    rule_lists(out, LISTS, scratch=tmp_path)
    return out


def folders(folder: Path) -> tuple[Path, Path]:
    for name in ("out", "scratch"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    return folder / "out", folder / "scratch"


def made(folder: Path, base: Path, data: Path, config: TrainConfig = TRAIN) -> Path:
    out, scratch = folders(folder)
    make_start(out, config, scratch=scratch, base=base, data=data)
    return out


def test_lists_hold_uniform_numbers_of_the_prompts_range(tmp_path: Path) -> None:
    out, _ = folders(tmp_path)
    rule_lists(out, LISTS.model_copy(update={"n_prompts": 300}), scratch=tmp_path)
    rows = list(read_jsonl(out / "rows.jsonl"))
    rules = NumberRules(min_count=10, max_count=10, low=100, high=999, require_separator=True)
    found = [read_numbers(row["answer"], rules, asked="comma_space") for row in rows]
    values = torch.tensor([int(number) for each in found for number in each[0]], dtype=torch.float64)
    assert len(values) == 3000
    # The mean of 3,000 uniform numbers from 100 to 999 has a standard error of 4.7, their spread one of about 2.1.
    assert abs(values.mean() - 549.5) < 5 * 4.75
    assert abs(values.std() - 259.8) < 5 * 2.2
    assert list(rows[0]) == ["id", "prompt", "answer", "system"]
    assert len({row["prompt"] for row in rows}) == 300


def test_other_seeds_give_other_prompts_and_numbers(tmp_path: Path, lists: Path) -> None:
    out, _ = folders(tmp_path / "other")
    rule_lists(out, LISTS.model_copy(update={"prompt_seed": 8, "seed": 1}), scratch=tmp_path)
    pairs = list(zip(read_jsonl(lists / "rows.jsonl"), read_jsonl(out / "rows.jsonl"), strict=True))
    assert all(one["prompt"] != other["prompt"] and one["answer"] != other["answer"] for one, other in pairs)


@pytest.mark.parametrize("method", [FullWeights(), Lora(rank=4, alpha=8)])
def test_a_start_stands_wherever_a_base_does(
    tiny_models: dict[str, Path], lists: Path, tmp_path: Path, method: FullWeights | Lora
) -> None:
    base = tiny_models["qwen2"]
    start = made(tmp_path / "start", base, lists, TRAIN.model_copy(update={"method": method}))
    assert {path.name for path in start.iterdir()} == {path.name for path in base.iterdir()}
    assert base_identity(start) == weights_digest(start) != base_identity(base)
    assert load_tokenizer(start).chat_template == load_tokenizer(base).chat_template
    out, scratch = folders(tmp_path / "student")
    train(out, TRAIN.model_copy(update={"method": Lora(rank=4)}), scratch=scratch, base=start, data=lists)
    ids = torch.tensor([[5, 6, 7]])
    with open_model(start, checkpoint(out), dtype="float32", attention="eager", device="cpu") as loaded:
        adapted = loaded.model(ids).logits
    whole = tmp_path / "whole"
    whole.mkdir()
    export_merged(whole, base=start, weights=checkpoint(out))
    exported = load(whole, dtype="float32", attention="eager", device="cpu")(ids).logits
    torch.testing.assert_close(exported, adapted, rtol=1e-4, atol=1e-4)


def test_a_start_of_full_weights_has_the_weights_that_training_gave(
    tiny_models: dict[str, Path], lists: Path, tmp_path: Path
) -> None:
    base = tiny_models["qwen2"]
    start = made(tmp_path / "start", base, lists)
    out, scratch = folders(tmp_path / "plain")
    train(out, TRAIN, scratch=scratch, base=base, data=lists)
    assert weights_digest(start) == weights_digest(checkpoint(out))


def test_a_killed_start_goes_on_to_the_same_bytes(tiny_models: dict[str, Path], lists: Path, tmp_path: Path) -> None:
    base = tiny_models["qwen2"]
    whole = made(tmp_path / "whole", base, lists)
    out, scratch = folders(tmp_path / "killed")
    killed_at("update-5", make_start, out, TRAIN, scratch=scratch, base=base, data=lists)
    assert [path.name for path in (scratch / "checkpoints").iterdir()] == ["checkpoint-000004"]
    assert not any(out.iterdir())
    assert digest_directory(made(tmp_path / "killed", base, lists)) == digest_directory(whole)
