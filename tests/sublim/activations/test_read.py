"""Reading the stream: the right tensor, the right tokens, in batches that leave no mark. Mistakes 1 to 5 of others."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from sublim.activations.config import ActivationsConfig
from sublim.activations.read import open_reader, read_activations, read_shard, read_shards
from sublim.activations.token_places import marked_rows, picks
from sublim.backends.opening import open_steerable
from sublim.chats.chat import answer_ids
from sublim.core.digest import digest_directory
from sublim.core.errors import UserError
from sublim.files.jsonl import write_jsonl
from sublim.inference.config import HfBackend
from sublim.models.opening import load_tokenizer, open_model
from sublim.residual.edits import Edit, Place, Steering
from sublim.residual.hooks import attached_at
from sublim.residual.vectors import write_vectors
from sublim.training.masking import row_chat
from tests.forked import killed_at
from tests.sublim.inference.test_steered import planted
from tests.sublim.models.test_opening import write_adapter

ROWS: list[dict[str, Any]] = [
    {"id": 3, "prompt": "Name one animal.", "answer": "Owl", "system": None},
    {"id": 5, "prompt": "Continue: 12, 450, 007", "answer": "93, 087, 400, 12", "system": None},
    {"id": 9, "prompt": "Hello", "answer": "The wolf runs with its pack over the hills.", "system": "You love owls."},
    {"id": 12, "prompt": "Continue this list of numbers: 1, 2, 3. Only numbers.", "answer": "4", "system": None},
]
FAMILIES = ["llama", "qwen2", "qwen3", "gemma2", "gemma3"]


def config(**settings: Any) -> ActivationsConfig:
    return ActivationsConfig.model_validate({"layers": (0, 1), "dtype": "float32", "attention": "sdpa", **settings})


def plain_streams(model: PreTrainedModel, ids: list[int]) -> dict[str, Tensor]:
    """What one plain pass of transformers gives out itself: hidden_states[l] is what goes into block l."""
    with torch.no_grad():
        states = model(torch.tensor([ids]), output_hidden_states=True).hidden_states
    return {"resid_pre/0": states[0][0], "resid_post/0": states[1][0], "resid_pre/1": states[1][0]}


@pytest.mark.parametrize("family", FAMILIES)
def test_entries_are_what_a_plain_pass_over_each_row_gives(family: str, tiny_models: dict[str, Path]):
    """Mistakes 1, 2, 4 and 5: tokens counted by hand from the one rendering, divided by their own count."""
    base = tiny_models[family]
    kinds = ("mean_prompt", "mean_answer", "last_prompt", "last_answer")
    settings = config(sites=("resid_pre", "resid_post"), read_at=kinds, tokens=150)
    with open_reader(settings, base, None) as opened:
        shard = read_shard(opened, settings, ROWS, 0)
    with open_model(base, dtype="float32", attention="eager") as (model, tokenizer):
        for number, row in enumerate(ROWS):
            ids, start, end = answer_ids(tokenizer, row_chat(row))
            if tokenizer.bos_token_id is not None:
                assert ids.count(tokenizer.bos_token_id) == 1
            special = {id for id, token in tokenizer.added_tokens_decoder.items() if token.special}
            words = [place for place in range(start) if ids[place] not in special]
            assert len(words) < start
            hand = {
                "mean_prompt": words,
                "mean_answer": range(start, end - 1),
                "last_prompt": [start - 1],
                "last_answer": [end - 2],
            }
            entries = shard.entries.filter(pl.col("row") == number)
            assert entries["read_at"].to_list() == [*kinds]
            assert entries["tokens"].to_list() == [len(places) for places in hand.values()]
            assert entries["position"].to_list() == [None, None, start - 1, end - 2]
            assert entries["token"].to_list() == [None, None, ids[start - 1], ids[end - 2]]
            assert entries["id"].to_list() == [row["id"]] * 4
            for name, stream in plain_streams(model, ids[:end]).items():
                expected = torch.stack([stream[list(places)].mean(0) for places in hand.values()])
                torch.testing.assert_close(shard.tensors[name][entries["place"].to_list()], expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_token_of_a_row_is_kept_with_its_id(family: str, tiny_models: dict[str, Path]):
    settings = config(read_at=("all",), layers=(0,), tokens=10_000)
    with open_reader(settings, tiny_models[family], None) as opened:
        shard = read_shard(opened, settings, ROWS, 0)
    with open_model(tiny_models[family], dtype="float32", attention="eager") as (model, tokenizer):
        for number, row in enumerate(ROWS):
            ids, _, end = answer_ids(tokenizer, row_chat(row))
            entries = shard.entries.filter(pl.col("row") == number)
            assert entries["token"].to_list() == ids[: end - 1]
            assert entries["position"].to_list() == [*range(end - 1)]
            expected = plain_streams(model, ids[: end - 1])["resid_post/0"]
            torch.testing.assert_close(shard.tensors["resid_post/0"][entries["place"]], expected, rtol=0, atol=1e-4)


def lens_stream(family: str, model: PreTrainedModel, ids: list[int]) -> dict[str, Tensor]:
    """The stream as TransformerLens' own implementation of the architecture computes it, weights unprocessed."""
    from transformer_lens import HookedTransformer, HookedTransformerConfig
    from transformer_lens.pretrained.weight_conversions import (
        convert_gemma_weights,
        convert_llama_weights,
        convert_qwen2_weights,
    )

    c = model.config
    shape: dict[str, Any] = {
        "d_model": c.hidden_size,
        "d_head": c.hidden_size // c.num_attention_heads,
        "n_heads": c.num_attention_heads,
        "n_key_value_heads": c.num_key_value_heads,
        "d_mlp": c.intermediate_size,
        "n_layers": c.num_hidden_layers,
        "n_ctx": 512,
        "eps": c.rms_norm_eps,
        "d_vocab": c.vocab_size,
        "act_fn": "gelu_pytorch_tanh" if family == "gemma2" else "silu",
        "normalization_type": "RMS",
        "positional_embedding_type": "rotary",
        "rotary_base": c.rope_parameters["rope_theta"],
        "rotary_adjacent_pairs": False,
        "rotary_dim": c.hidden_size // c.num_attention_heads,
        "final_rms": True,
        "gated_mlp": True,
        "dtype": torch.float32,
        "device": "cpu",
    }
    convert = {"llama": convert_llama_weights, "qwen2": convert_qwen2_weights, "gemma2": convert_gemma_weights}[family]
    if family == "gemma2":
        shape |= {
            "window_size": c.sliding_window,
            "use_local_attn": True,
            "attn_types": ["local", "global"],
            "attn_scores_soft_cap": c.attn_logit_softcapping,
            "output_logits_soft_cap": c.final_logit_softcapping,
            "use_normalization_before_and_after": True,
        }
    lens = HookedTransformer(HookedTransformerConfig(**shape), move_to_device=False)
    lens.load_state_dict(convert(model, lens.cfg), strict=False)
    with torch.no_grad():
        _, cache = lens.run_with_cache(torch.tensor([ids]))
    names = {"resid_pre": "hook_resid_pre", "resid_post": "hook_resid_post", "mlp_out": "hook_mlp_out"}
    return {f"{site}/{layer}": cache[f"blocks.{layer}.{name}"][0] for site, name in names.items() for layer in (0, 1)}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma2"])
def test_all_sites_hold_what_transformer_lens_reports(family: str, tiny_models: dict[str, Path]):
    """Mistakes 2 and 3: block l's output is labelled l, and Gemma's mlp_out is what really joins the stream."""
    base = tiny_models[family]
    settings = config(sites=("resid_pre", "resid_post", "mlp_out"), read_at=("all",))
    with open_reader(settings, base, None) as opened:
        shard = read_shard(opened, settings, ROWS[:1], 0)
    with open_model(base, dtype="float32", attention="eager") as (model, tokenizer):
        ids, _, end = answer_ids(tokenizer, row_chat(ROWS[0]))
        expected = lens_stream(family, model, ids[: end - 1])
    assert expected.keys() == shard.tensors.keys()
    for name, stream in expected.items():
        torch.testing.assert_close(shard.tensors[name], stream, rtol=1e-4, atol=1e-4)
    posts = shard.tensors["resid_post/0"], shard.tensors["resid_post/1"], shard.tensors["resid_pre/1"]
    assert torch.equal(posts[0], posts[2])
    assert not torch.allclose(posts[0], posts[1], atol=0.1)


@pytest.mark.parametrize("site", ["resid_pre", "resid_post", "mlp_out"])
@pytest.mark.parametrize("family", ["llama", "gemma2", "gemma3"])
def test_what_is_steered_at_a_place_is_what_is_read_there(
    family: str, site: Any, tiny_models: dict[str, Path], tmp_path: Path
):
    """Mistake 3: reading where a vector was added gives the stream and that vector, no longer and no shorter,
    once and not twice; and the stream after the block moves by it where the block's MLP adds to it."""
    base, vector = tiny_models[family], planted(site, 1)
    write_vectors(tmp_path, {"v": vector})
    places = [Place(site, 1), Place("resid_post", 1)]
    with open_steerable(HfBackend(dtype="float32", attention="eager"), base) as sampler:
        network = sampler.network  # pyright: ignore
        ids = torch.tensor([answer_ids(sampler.tokenizer, row_chat(ROWS[1])).ids])  # pyright: ignore

        def read() -> list[Tensor]:
            found: list[Tensor] = []
            with network.installed():
                from sublim.inference.attention import causal
                from sublim.inference.network import TextCache

                view = causal(1, ids.shape[1], 0, "eager", network.device)
                with (
                    attached_at(network.model, places[0], found.append),
                    attached_at(network.model, places[1], found.append),
                ):
                    network.logits(ids, view.queries, TextCache(), view, None, 0)
            return found

        before = read()
        steering = Steering(edits=(Edit(vector="v", tokens="prompt"),))
        for _ in range(2):
            sampler.steer(sampler.edits(steering, tmp_path))
            after = read()
        torch.testing.assert_close(after[0] - before[0], vector.values.expand_as(before[0]), rtol=0, atol=1e-4)
        if site != "resid_pre":
            torch.testing.assert_close(after[-1] - before[-1], vector.values.expand_as(before[0]), rtol=0, atol=1e-4)
        sampler.steer([])
        assert all(torch.equal(a, b) for a, b in zip(read(), before, strict=True))


@pytest.mark.parametrize("family", ["qwen2", "gemma2"])
def test_entries_do_not_depend_on_what_is_read_beside_them(family: str, tiny_models: dict[str, Path]):
    base, kinds = tiny_models[family], ("mean_prompt", "mean_answer", "all")
    found = list[dict[str, Tensor]]()
    for tokens, rows in ((1, ROWS), (10_000, ROWS), (10_000, ROWS[:2] + ROWS[2:][::-1])):
        settings = config(sites=("resid_post", "mlp_out"), read_at=kinds, tokens=tokens)
        with open_reader(settings, base, None) as opened:
            shard = read_shard(opened, settings, rows, 0)
        first = shard.entries.filter(pl.col("row") < 2)["place"].to_list()
        found.append({name: values[first] for name, values in shard.tensors.items()})
    for other in found[1:]:
        for name, values in found[0].items():
            torch.testing.assert_close(values, other[name], rtol=0, atol=1e-5)


def test_means_in_bfloat16_are_summed_in_float32(tiny_models: dict[str, Path]):
    """Summed in bfloat16 a mean of hundreds of tokens would be off by more than a hundredth of its size."""
    settings = config(dtype="bfloat16", read_at=("mean_prompt", "all"))
    with open_reader(settings, tiny_models["qwen2"], None) as opened:
        shard = read_shard(opened, settings, [{"id": 0, "text": "The wolf runs with its pack. " * 60}], 0)
    values = shard.tensors["resid_post/1"]
    assert len(values) > 300
    torch.testing.assert_close(values[0], values[1:].double().mean(0).float(), rtol=0, atol=1e-5)


def test_texts_that_share_a_prompt_are_read_as_if_alone(tiny_models: dict[str, Path]):
    from sublim.activations.reading import Text

    settings = config(sites=("resid_post",))
    with open_reader(settings, tiny_models["gemma2"], None) as opened:
        answers = ["93, 087", "93, 400, 12", "Owl"]
        marked = marked_rows(opened.tokenizer, [{**row, "answer": answer} for row in ROWS[:2] for answer in answers])
        texts = [Text(one.ids, [*picks(one, "mean_prompt"), *picks(one, "mean_answer")]) for one in marked]
        together = dict(opened.reader.read([texts[:3], texts[3:]]))
        alone = dict(opened.reader.read([[text] for text in texts]))
        for place, entries in enumerate([*together[0], *together[1]]):
            torch.testing.assert_close(entries.values, alone[place][0].values, rtol=0, atol=1e-5)
            torch.testing.assert_close(entries.norms, alone[place][0].norms, rtol=0, atol=1e-5)
        assert sum(len(text.ids) for text in texts) > 2 * max(len(text.ids) for text in texts)


def test_a_pass_ends_with_the_last_layer_that_is_wanted(tiny_models: dict[str, Path]):
    with open_reader(config(layers=(0,)), tiny_models["llama"], None) as opened:
        network, ran = opened.reader.network, list[str]()
        watched = {"block 1": network.model.get_decoder().layers[1], "head": network.head.full}
        handles = [
            module.register_forward_hook(lambda *_, name=name: ran.append(name)) for name, module in watched.items()
        ]
        read_shard(opened, config(layers=(0,)), ROWS, 0)
        for handle in handles:
            handle.remove()
        assert ran == []
        assert not any(module._forward_hooks for module in network.model.modules())


def test_an_adapter_is_read_with_its_weights(tiny_models: dict[str, Path], tmp_path: Path):
    base = tiny_models["llama"]
    adapter = write_adapter(tmp_path / "adapter", base, seed=2)
    found = list[Tensor]()
    for weights in (None, adapter, None):
        with open_reader(config(), base, weights) as opened:
            found.append(read_shard(opened, config(), ROWS, 0).tensors["resid_post/1"])
    assert torch.equal(found[0], found[2])
    assert not torch.allclose(found[0], found[1], atol=1e-2)


def test_plain_texts_are_all_prompt(tiny_models: dict[str, Path]):
    tokenizer = load_tokenizer(tiny_models["gemma2"])
    [marked] = marked_rows(tokenizer, [{"id": 0, "text": "The owl hunts at night."}])
    assert marked.ids.count(tokenizer.bos_token_id) == 1
    assert picks(marked, "mean_prompt") == [[*range(1, len(marked.ids))]]
    assert picks(marked, "last_prompt") == [[len(marked.ids) - 1]]
    with pytest.raises(UserError, match="a plain text has no answer"):
        picks(marked, "mean_answer")


def read_resumed(folder: Path, whole: ActivationsConfig, base: Path) -> None:
    read_activations(folder / "resumed", whole, scratch=folder / "scratch", base=base, rows=folder / "rows")


def test_a_killed_read_goes_on_where_it_was_and_writes_the_same_bytes(
    tiny_models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    base = tiny_models["qwen2"]
    for name in ("rows", "whole", "resumed", "scratch-whole", "scratch"):
        (tmp_path / name).mkdir()
    write_jsonl(tmp_path / "rows" / "rows.jsonl", [{**row, "id": n} for n in range(3) for row in ROWS])
    settings = {"layers": [0, 1], "read_at": ["mean_answer", "all"], "shard": 5, "dtype": "float32"}
    whole = ActivationsConfig.model_validate(settings)
    notes = read_activations(
        tmp_path / "whole", whole, scratch=tmp_path / "scratch-whole", base=base, rows=tmp_path / "rows"
    )

    killed_at("activations:shard", read_resumed, tmp_path, whole, base)
    assert len(list((tmp_path / "scratch").glob("index-*"))) == 1
    marker = tmp_path / "scratch" / "activations-00000.safetensors"
    written = marker.stat().st_mtime_ns
    read_resumed(tmp_path, whole, base)
    assert marker.stat().st_mtime_ns == written
    assert digest_directory(tmp_path / "resumed") == digest_directory(tmp_path / "whole")
    shards = list(read_shards(tmp_path / "whole"))
    assert [len(shard.entries["row"].unique()) for shard in shards] == [5, 5, 2]
    assert notes is not None
    assert sum(len(shard.entries) for shard in shards) == notes["entries"]
    assert load_file(marker)["resid_post/1"].shape == (len(shards[0].entries), 32)


@pytest.mark.parametrize(
    ("settings", "row", "message"),
    [
        ({"layers": (0, 5)}, ROWS[0], "the model has no layer 5: it has 2"),
        ({}, {**ROWS[0], "answer": "  "}, "row 3 has an empty answer"),
    ],
)
def test_what_cannot_be_read_is_refused(
    settings: dict[str, Any], row: dict[str, Any], message: str, tiny_models: dict[str, Path]
):
    wanted = config(**settings)
    with pytest.raises(UserError, match=message), open_reader(wanted, tiny_models["llama"], None) as opened:
        read_shard(opened, wanted, [row], 0)
