"""SAEs and exam questions that would be read as something else than they are: other features, another right answer."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from safetensors.torch import save_file

from sublim.core.errors import UserError
from sublim.evals.mmlu_pro.config import ParquetQuestions, PrepareQuestionsConfig
from sublim.evals.mmlu_pro.questions import prepare_mmlu_pro
from sublim.files.jsonl import read_jsonl
from sublim.sae.autoencoder import import_sae, load_sae
from sublim.sae.config import FolderSae, ImportSaeConfig

WIDTH, FEATURES = 8, 24
Tensors = dict[str, torch.Tensor]


def weights(**more: torch.Tensor) -> Tensors:
    generator = torch.Generator().manual_seed(0)
    shapes = {"W_enc": (WIDTH, FEATURES), "b_enc": (FEATURES,), "W_dec": (FEATURES, WIDTH), "b_dec": (WIDTH,)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()} | more


CONFIG: dict[str, Any] = {
    "architecture": "standard",
    "d_in": WIDTH,
    "d_sae": FEATURES,
    "dtype": "float32",
    "device": "cpu",
    "apply_b_dec_to_input": True,
    "normalize_activations": "none",
    "reshape_activations": "none",
    "metadata": {"sae_lens_version": "6.5.0", "hook_name": "blocks.1.hook_resid_post", "model_name": "tiny"},
}
OLD = {
    "d_in": WIDTH,
    "d_sae": FEATURES,
    "dtype": "torch.float32",
    "hook_point": "blocks.1.hook_resid_post",
    "model_name": "tiny",
}


def folder(path: Path, config: Mapping[str, Any] | str, tensors: Tensors) -> FolderSae:
    path.mkdir()
    (path / "cfg.json").write_text(config if isinstance(config, str) else json.dumps(config))
    save_file(tensors, path / "sae_weights.safetensors")
    return FolderSae(path=path)


def imported(path: Path, config: Mapping[str, Any], tensors: Tensors) -> Path:
    source = folder(path / "theirs", config, tensors)
    out = path / "ours"
    out.mkdir()
    import_sae(out, ImportSaeConfig(source=source), scratch=path)
    return out


THRESHOLD = {"threshold": torch.full((FEATURES,), 0.3)}
KNOWN_BEFORE_ANYTHING_RUNS: list[tuple[Mapping[str, Any] | str, Tensors, str]] = [
    ({**CONFIG, "normalize_activations": "expected_average_only_in"}, weights(), "factor is not in the weights"),
    ({**CONFIG, "normalize_activations": "covariance_whitening"}, weights(), "factor is not in the weights"),
    ({**OLD, "normalize_activations": True}, weights(), "factor is not in the weights"),
    ({**OLD, "finetuning_scaling_factor": True}, weights(), "finetuning_scaling_factor"),
    ({**OLD, "activation_fn_str": "tanh-relu"}, weights(), "activation function tanh-relu"),
    ({**OLD, "activation_fn_str": "topk", "activation_fn_kwargs": {}}, weights(), "k is None"),
    ({**CONFIG, "architecture": "topk"}, weights(), "k is None"),
    ({**CONFIG, "architecture": "topk", "k": FEATURES + 1}, weights(), f"from 1 to {FEATURES}"),
    ({**CONFIG, "architecture": "topk", "k": 4.5}, weights(), r"k is 4\.5"),
    ({**CONFIG, "architecture": "transcoder", "d_out": WIDTH}, weights(), "architecture transcoder"),
    ({**CONFIG, "d_out": 16}, weights(), "is a transcoder"),
    ({**CONFIG, "architecture": "temporal"}, weights(), "architecture temporal"),
    ({**CONFIG, "architecture": "abstopk", "k": 4}, weights(), "architecture abstopk"),
    ({**CONFIG, "d_sae": "24"}, weights(), "d_sae is '24'"),
    ({**CONFIG, "d_sae": 25}, weights(), r"W_enc is \(8, 24\), cfg.json makes it \(8, 25\)"),
    (CONFIG, weights(W_enc=torch.randn(FEATURES, WIDTH)), "W_enc is"),
    (CONFIG, weights(W_enc=torch.ones(WIDTH, FEATURES, dtype=torch.int8)), "of type I8"),
    ({**CONFIG, "architecture": "jumprelu"}, weights(log_threshold=-torch.ones(FEATURES)), "has no threshold"),
    ({**CONFIG, "metadata": None}, weights(), "metadata is None"),
    ({**CONFIG, "metadata": {"hook_name": None, "model_name": 7}}, weights(), "model_name is 7"),
    ({**CONFIG, "metadata": {"model_from_pretrained_kwargs": "x"}}, weights(), "should be an object"),
    ({**CONFIG, "apply_b_dec_to_input": "false"}, weights(), "apply_b_dec_to_input is 'false'"),
    (json.dumps(CONFIG).replace('"none"', "NaN", 1), weights(), "NaN is no number"),
    (json.dumps(CONFIG)[:-1] + ', "d_in": 9}', weights(), "'d_in' is there twice"),
    ("[]", weights(), "one JSON object"),
    ("", weights(), "it is empty"),
]


@pytest.mark.parametrize(("config", "tensors", "told"), KNOWN_BEFORE_ANYTHING_RUNS)
def test_folder_that_would_be_read_as_another_sae_is_refused_before_anything_runs(
    config: Mapping[str, Any] | str, tensors: Tensors, told: str, tmp_path: Path
) -> None:
    source = folder(tmp_path / "sae", config, tensors)
    with pytest.raises(UserError, match=told) as caught:
        source.identity()
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=told):
        import_sae(tmp_path, ImportSaeConfig(source=source), scratch=tmp_path)


@pytest.mark.parametrize(
    ("config", "tensors", "told"),
    [
        (CONFIG, weights(b_dec=torch.full((WIDTH,), float("nan"))), "b_dec holds NaN"),
        (CONFIG, weights(scaling_factor=torch.full((FEATURES,), 2.0)), "SAELens cannot read"),
        (CONFIG, weights(more=torch.ones(1)), "SAELens cannot read"),
        ({**CONFIG, "architecture": "jumprelu"}, weights(threshold=torch.full((FEATURES,), -4.6)), "below 0"),
        ({**CONFIG, "dtype": "float7"}, weights(), "SAELens cannot read"),
        ({**CONFIG, "normalize_activations": "l2"}, weights(), "SAELens cannot read"),
    ],
)
def test_weights_that_saelens_cannot_use_are_refused_in_one_line(
    config: Mapping[str, Any], tensors: Tensors, told: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=told) as caught:
        imported(tmp_path, config, tensors)
    assert "\n" not in str(caught.value)


def test_scalings_that_saelens_applies_to_each_token_are_read_as_they_are(tmp_path: Path) -> None:
    stream, tensors = torch.randn(30, WIDTH) * 25, weights()
    normed = stream * WIDTH**0.5 / stream.norm(dim=1, keepdim=True)
    payload = imported(tmp_path, {**CONFIG, "normalize_activations": "constant_norm_rescale"}, tensors)
    expected = torch.relu((normed - tensors["b_dec"]) @ tensors["W_enc"] + tensors["b_enc"])
    assert torch.allclose(load_sae(payload).encode(stream), expected, atol=1e-4)


def test_scaling_factors_of_ones_change_nothing(tmp_path: Path) -> None:
    tensors = weights(scaling_factor=torch.ones(FEATURES), **THRESHOLD)
    payload = imported(tmp_path, {**CONFIG, "architecture": "jumprelu"}, tensors)
    before = (torch.ones(3, WIDTH) - tensors["b_dec"]) @ tensors["W_enc"] + tensors["b_enc"]
    assert torch.allclose(load_sae(payload).encode(torch.ones(3, WIDTH)), before * (before > 0.3), atol=1e-5)


def exam(path: Path, options: list[Any], index: Any, letter: str = "") -> list[dict[str, Any]]:
    row = {"question_id": 7, "question": "Which?", "options": options, "category": "law"}
    row |= {"answer": letter or "ABCDEFGHIJ"[index], "answer_index": index}
    pl.DataFrame([row], strict=False).write_parquet(path / "q.parquet")
    config = PrepareQuestionsConfig(source=ParquetQuestions(path=path / "q.parquet"), categories=("law",))
    prepare_mmlu_pro(path, config, scratch=path)
    return list(read_jsonl(path / "questions.jsonl"))


@pytest.mark.parametrize(
    ("options", "index", "kept"),
    [
        (["a", None, "c", "d"], 2, ["a", "N/A", "c", "d"]),
        ([None, "b", "c"], 1, ["N/A", "b", "c"]),
        (["a", "b", None, "N/A", None], 1, ["a", "b"]),
        (["a", "", "c"], 2, ["a", "", "c"]),
        ([1.5, float("nan"), 3.5], 2, ["1.5", "N/A", "3.5"]),
    ],
)
def test_options_keep_their_letters_where_one_is_missing(
    options: list[Any], index: int, kept: list[str], tmp_path: Path
) -> None:
    found = exam(tmp_path, options, index)[0]
    assert (found["options"], found["answer"]) == (kept, index)


@pytest.mark.parametrize(
    ("options", "index", "letter"),
    [
        (["a", None, "c"], 1, "B"),
        (["a", "b", None], 2, "C"),
        (["a", " ", "c"], 1, "B"),
        (["a", None, None], 0, "A"),
        (["a", "b"], True, "B"),
        (["a", "b"], 1, "b"),
        (["a", "b"], 1, "1"),
    ],
)
def test_question_whose_right_option_is_in_doubt_is_refused_by_its_number(
    options: list[Any], index: Any, letter: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="question 7"):
        exam(tmp_path, options, index, letter)
