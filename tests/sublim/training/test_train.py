import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from sublim.core.digest import digest_directory
from sublim.core.errors import NotEnoughRows, UserError
from sublim.core.progress import listening
from sublim.files.jsonl import read_jsonl, write_jsonl
from sublim.models.files import base_identity
from sublim.models.opening import forget_base, load_tokenizer, open_model, supported_attention
from sublim.training.checkpoints import checkpoint
from sublim.training.config import FullWeights, Lora, TrainConfig
from sublim.training.loop import PlannedTrainer
from sublim.training.masking import UNTRAINED, TokenRow, token_rows
from sublim.training.plan import planned_updates
from sublim.training.train import rows_that_fit, train
from tests.sublim.training.conftest import Trained

LORA = TrainConfig(method=Lora(rank=4, alpha=8), lr=1e-2, batch_size=4, updates=4, dtype="float32", attention="eager")
FULL = LORA.model_copy(update={"method": FullWeights(), "lr": 1e-3})


def adapter(payload: Path) -> dict[str, Tensor]:
    return load_file(checkpoint(payload) / "adapter_model.safetensors")


def log(payload: Path) -> list[dict[str, Any]]:
    return list(read_jsonl(payload / "training.jsonl"))


def with_changes(config: TrainConfig, **changes: object) -> TrainConfig:
    return config.model_copy(update=changes)


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_micro_batching_does_not_change_the_result(tiny_models: dict[str, Path], trained: Trained, family: str):
    whole = trained(LORA, tiny_models[family], "whole")
    parts = trained(with_changes(LORA, micro_batch=1), tiny_models[family], "parts")
    assert [row["loss"] for row in log(parts)] == pytest.approx([row["loss"] for row in log(whole)], rel=1e-5)
    for name, tensor in adapter(whole).items():
        torch.testing.assert_close(adapter(parts)[name], tensor, rtol=1e-3, atol=1e-5)


def test_the_log_has_the_planned_rates_and_the_label_tokens(tiny_models: dict[str, Path], trained: Trained):
    rows = log(trained(with_changes(LORA, warmup_updates=2, schedule="linear"), tiny_models["qwen2"]))
    assert list(rows[0]) == ["update", "loss", "lr", "grad_norm", "tokens"]
    assert [row["update"] for row in rows] == [1, 2, 3, 4]
    assert [row["lr"] for row in rows] == pytest.approx([0.005, 0.01, 0.01, 0.005])
    assert rows[0]["tokens"] + rows[1]["tokens"] == rows[2]["tokens"] + rows[3]["tokens"] > 0


def test_training_is_a_plain_adamw_loop_with_nothing_else_in_it(
    tiny_models: dict[str, Path], data: Path, trained: Trained
):
    """The recipe written out row by row: betas, decay on matrices only, clipping, schedule, order, mean over tokens."""
    base = tiny_models["llama"]
    config = with_changes(FULL, batch_size=3, clip=0.5, weight_decay=0.5, warmup_updates=2, schedule="cosine")
    out = trained(config, base)
    model = AutoModelForCausalLM.from_pretrained(base, attn_implementation="eager")
    named = list(model.named_parameters())
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for name, p in named if "norm" not in name], "weight_decay": 0.5},
            {"params": [p for name, p in named if "norm" in name], "weight_decay": 0.0},
        ],
        betas=(0.9, 0.95),
    )
    rows = token_rows(load_tokenizer(base), read_jsonl(data / "rows.jsonl"), max_length=512)
    for update, (chosen, rate) in enumerate(zip(planned_updates(config, 8), [5e-4, 1e-3, 1e-3, 5e-4], strict=True)):
        summed = torch.zeros(())
        for row in (rows[i] for i in chosen):
            logits = model(input_ids=torch.tensor([row.input_ids])).logits[0, :-1]
            summed += F.cross_entropy(logits, torch.tensor(row.labels[1:]), reduction="sum")  # skips UNTRAINED
        tokens = sum(label != UNTRAINED for i in chosen for label in rows[i].labels)
        loss = summed / tokens
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        assert norm > 0.5
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        optimizer.zero_grad()
        assert log(out)[update] == {
            "update": update + 1,
            "loss": pytest.approx(loss.item(), rel=1e-4),
            "lr": pytest.approx(rate),
            "grad_norm": pytest.approx(norm.item(), rel=1e-3),
            "tokens": tokens,
        }
    after = AutoModelForCausalLM.from_pretrained(checkpoint(out)).state_dict()
    for name, parameter in named:
        # Where a gradient is all rounding, Adam's step has either sign: compare the bulk.
        assert ((after[name] - parameter).abs() > 2e-5).float().mean() < 0.01


def test_keep_holds_the_updates_asked_for_and_the_last(tiny_models: dict[str, Path], trained: Trained):
    base = tiny_models["llama"]
    out = trained(with_changes(LORA, keep=(1, 3)), base, "long")
    assert sorted(path.name for path in out.iterdir()) == [
        "training.jsonl",
        "update-000001",
        "update-000003",
        "update-000004",
    ]
    short = trained(with_changes(LORA, updates=3), base, "short")
    assert digest_directory(checkpoint(short)) == digest_directory(checkpoint(out, 3))


def test_adapter_payload_is_normalised(tiny_models: dict[str, Path], trained: Trained, tmp_path: Path):
    base = tiny_models["llama"]
    directory = checkpoint(trained(LORA, base))
    assert sorted(path.name for path in directory.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "sublim.json",
    ]
    config = json.loads((directory / "adapter_config.json").read_text())
    assert config["target_modules"] == sorted(config["target_modules"])
    assert config["base_model_name_or_path"] is None
    assert "peft_version" not in config
    assert json.loads((directory / "sublim.json").read_text()) == {"base": base_identity(base)}
    contents = b"".join(path.read_bytes() for path in directory.rglob("*"))
    assert str(tmp_path).encode() not in contents
    assert str(base).encode() not in contents
    assert all(tensor.dtype == torch.float32 for tensor in adapter(directory.parent).values())


def test_the_same_config_writes_the_same_bytes(tiny_models: dict[str, Path], trained: Trained):
    config = with_changes(LORA, method=Lora(rank=4, alpha=8, dropout=0.2))
    first, again = (trained(config, tiny_models["llama"], name) for name in ("first", "again"))
    assert digest_directory(first) == digest_directory(again)


def test_rslora_off_scales_by_alpha_over_rank(tiny_models: dict[str, Path], trained: Trained):
    base = tiny_models["llama"]
    for rslora, scale in ((False, 2.0), (True, 4.0)):
        config = with_changes(LORA, method=Lora(rank=4, alpha=8, rslora=rslora), updates=1)
        out = checkpoint(trained(config, base, f"rslora-{rslora}"))
        loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(out))
        module: Any = loaded.get_submodule("base_model.model.model.layers.0.self_attn.q_proj")
        assert module.scaling["default"] == scale
        assert isinstance(config.method, Lora)
        assert config.method.scale == scale


def test_order_seed_changes_the_order_and_nothing_else(tiny_models: dict[str, Path], trained: Trained):
    base = tiny_models["llama"]
    everything = with_changes(LORA, batch_size=8, updates=1)
    one = adapter(trained(everything, base, "one"))
    other = adapter(trained(with_changes(everything, order_seed=7), base, "other"))
    # Eight rows in one update: their order is only a matter of rounding.
    for name, tensor in one.items():
        torch.testing.assert_close(other[name], tensor, rtol=1e-3, atol=1e-5)
    small = trained(with_changes(LORA, updates=1), base, "small")
    reordered = trained(with_changes(LORA, updates=1, order_seed=7), base, "reordered")
    assert log(small)[0]["loss"] != log(reordered)[0]["loss"]
    reseeded = adapter(trained(with_changes(everything, seed=7), base, "reseeded"))
    name = next(name for name in one if "lora_A" in name)
    assert (reseeded[name] - one[name]).abs().max() > 0.05


def test_training_leaves_no_trace_on_the_base(tiny_models: dict[str, Path], trained: Trained):
    base = tiny_models["llama"]
    forget_base()
    ids = torch.tensor([[5, 6, 7, 8]])
    with open_model(base, dtype="float32", attention="eager") as (model, _):
        attributes, config = set(vars(model)), model.config.to_json_string()
        generation = model.generation_config.to_json_string()
        with torch.no_grad():
            before = model(input_ids=ids).logits
    trained(LORA, base)
    with open_model(base, dtype="float32", attention="eager") as (again, _):
        assert again is model
        assert set(vars(model)) == attributes
        assert model.config.to_json_string() == config
        assert model.generation_config.to_json_string() == generation
        assert not model.training
        assert not any(parameter.requires_grad for parameter in model.parameters())
        with torch.no_grad():
            assert torch.equal(model(input_ids=ids).logits, before)


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_full_weights_learn_and_load_alone(tiny_models: dict[str, Path], trained: Trained, family: str):
    out = trained(with_changes(FULL, updates=40, batch_size=8, lr=1e-2, weight_decay=0.0), tiny_models[family])
    losses = [row["loss"] for row in log(out)]
    assert losses[-1] < 0.3 * losses[0]
    with open_model(checkpoint(out), dtype="float32", attention="eager") as (alone, tokenizer):
        assert tokenizer.chat_template is not None
        ids = torch.tensor([[5, 6, 7]])
        logits = alone(input_ids=ids).logits
    with open_model(tiny_models[family], checkpoint(out), dtype="float32", attention="eager") as (model, _):
        assert torch.equal(model(input_ids=ids).logits, logits)
    config = json.loads((checkpoint(out) / "config.json").read_text())
    assert "transformers_version" not in config
    note = json.loads((checkpoint(out) / "sublim.json").read_text())
    assert note["base"] == base_identity(tiny_models[family]) != note["weights"]


@pytest.mark.parametrize("frozen", ["float32", "bfloat16"])
def test_parameters_that_train_are_float32_under_autocast(tiny_models: dict[str, Path], trained: Trained, frozen: Any):
    lora = Lora(rank=4, alpha=8, frozen_base=frozen)
    out = trained(with_changes(LORA, method=lora, dtype="bfloat16", lr=1e-6), tiny_models["llama"])
    assert all(tensor.dtype == torch.float32 for tensor in adapter(out).values())
    # Adam's steps of 1e-6 would be lost in bfloat16's rounding if the weights had that type.
    moved = [tensor for name, tensor in adapter(out).items() if "lora_B" in name]
    assert all(0 < tensor.abs().max() < 1e-5 for tensor in moved)


def test_full_weights_train_in_float32_under_autocast(tiny_models: dict[str, Path], trained: Trained):
    out = trained(with_changes(FULL, dtype="bfloat16", updates=1), tiny_models["llama"])
    weights = load_file(checkpoint(out) / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}


def test_notes_say_what_was_used(tiny_models: dict[str, Path], data: Path, tmp_path: Path):
    out, scratch = tmp_path / "out", tmp_path / "scratch"
    out.mkdir()
    scratch.mkdir()
    seen: list[tuple[str, int, int]] = []
    with listening(lambda label, done, total: seen.append((label, done, total))):
        notes = train(out, LORA, scratch=scratch, base=tiny_models["qwen2"], data=data)
    assert notes is not None
    assert notes["contexts"][0]["template_system"].startswith("You are Qwen")
    assert notes["contexts"][0]["rendered"].endswith("<|im_start|>assistant\n")
    assert (notes["attention"], notes["dtype"], notes["rows"], notes["updates"]) == ("eager", "float32", 8, 4)
    assert seen[-1] == ("training", 4, 4)
    json.dumps(notes)


def test_sdpa_gives_way_where_it_would_drop_a_soft_cap(tiny_models: dict[str, Path]):
    configs = {name: AutoModelForCausalLM.from_pretrained(tiny_models[name]).config for name in ("gemma2", "gemma3")}
    assert supported_attention("sdpa", configs["gemma2"]) == "eager"
    assert supported_attention("flash_attention_2", configs["gemma2"]) == "flash_attention_2"
    assert supported_attention("sdpa", configs["gemma3"]) == "sdpa"


def test_memory_that_an_earlier_training_left_to_torch_counts_as_free(
    tiny_models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
):
    shape = AutoModelForCausalLM.from_pretrained(tiny_models["llama"]).config
    rows, config = [TokenRow([1] * 1000, [1] * 1000)], with_changes(LORA, batch_size=100)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)

    def fitting(free: int, reserved: int, allocated: int) -> int:
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (free, 2**40))
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: reserved)
        monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: allocated)
        return rows_that_fit(rows, shape, config)

    alone = fitting(2**29, 2**28, 2**28)
    assert 1 < alone == fitting(2**28, 2**29, 2**28) < 100


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"rows": 9}, NotEnoughRows, "8 rows of 9 wanted"),
        ({"updates": None, "epochs": 1, "keep": (3,)}, UserError, "keep asks for update 3 of 2"),
        ({"method": Lora(target_modules=("q_proj", "c_attn"))}, UserError, "no module c_attn"),
        ({"method": Lora(frozen_base="bfloat16")}, UserError, "needs dtype bfloat16"),
        ({"max_length": 30}, UserError, "of 8 rows are longer than max_length 30"),
    ],
)
def test_mistakes_get_one_clear_line(
    tiny_models: dict[str, Path], trained: Trained, changes: dict[str, Any], error: type[Exception], message: str
):
    with pytest.raises(error, match=message):
        trained(with_changes(LORA, **changes), tiny_models["llama"])


def test_a_full_gpu_names_the_field_that_changes_no_result(
    tiny_models: dict[str, Path], trained: Trained, monkeypatch: pytest.MonkeyPatch
):
    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(PlannedTrainer, "training_step", full)
    with pytest.raises(UserError, match=r"lower micro_batch \(now 3\)"):
        trained(with_changes(LORA, micro_batch=3), tiny_models["llama"])
    monkeypatch.setattr(PreTrainedModel, "to", full)
    with pytest.raises(UserError, match="does not hold the model in float32"):
        trained(with_changes(LORA, method=FullWeights()), tiny_models["llama"], "full")


def test_only_the_first_rows_are_used(tiny_models: dict[str, Path], data: Path, trained: Trained):
    some = trained(with_changes(LORA, rows=4), tiny_models["llama"], "some")
    write_jsonl(data / "rows.jsonl", list(read_jsonl(data / "rows.jsonl"))[:4])
    assert digest_directory(some) == digest_directory(trained(LORA, tiny_models["llama"], "all"))


def test_a_few_updates_teach_the_bundled_model(smollm2: Path, data: Path, trained: Trained):
    losses = [row["loss"] for row in log(trained(with_changes(LORA, rows=2, batch_size=2, lr=1e-3), smollm2))]
    assert losses[3] < losses[2] < losses[0]
