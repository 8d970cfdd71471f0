import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import torch
from peft import LoraConfig, get_peft_model
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    PreTrainedModel,
    SiglipVisionConfig,
)

from sublim.bases.prepare import prepare_model
from sublim.chats.chat import chat, end_of_turn, render_ids
from sublim.core.digest import digest, digest_directory
from sublim.core.errors import UserError
from sublim.models import opening
from sublim.models.config import HubModel, LocalModel, PrepareModelConfig
from sublim.models.export import export_merged
from sublim.models.files import base_identity, read_json, weights_digest, write_json
from sublim.models.opening import LoadedModel, open_model
from tests.tiny import FAMILIES, Family, tiny_model

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def nothing_kept() -> Iterator[None]:
    """Every test starts and ends without a kept base."""
    opening.forget_base()
    yield
    opening.forget_base()


def opened(base: Path, weights: Path | None = None, *, dtype: str = "float32"):
    return open_model(base, weights, dtype=dtype, attention="eager", device="cpu")


def prepare(source: LocalModel, out: Path) -> Path:
    out.mkdir()
    prepare_model(out, PrepareModelConfig(source=source), scratch=out)
    return out


def snapshot(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def logits(loaded: LoadedModel) -> torch.Tensor:
    ids = torch.tensor([render_ids(loaded.tokenizer, chat("Name an animal."))])
    with torch.inference_mode():
        return loaded.model(ids).logits[0, -1].float()


def write_adapter(directory: Path, base: Path, *, seed: int, note: bool = True) -> Path:
    """A trained-looking adapter, written as peft writes one."""
    with opened(base) as loaded:
        torch.manual_seed(seed)
        adapted = get_peft_model(
            loaded.model, LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
        )
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(parameter, std=0.1)
        adapted.save_pretrained(directory)
        adapted.unload()
        if note:
            write_json(directory / "sublim.json", {"base": base_identity(base)})
    return directory


def test_the_bundled_model_answers_sensibly_and_stops(smollm2: Path) -> None:
    questions = {"What is the capital of France?": "Paris", "What is 2+2?": "4"}
    with opened(smollm2) as (model, tokenizer):
        for question, answer in questions.items():
            ids = torch.tensor([render_ids(tokenizer, chat(question))])
            output = model.generate(ids, max_new_tokens=40, do_sample=False)[0, ids.shape[1] :]
            text = tokenizer.decode(output)
            assert answer in text
            assert text.endswith("<|im_end|>")


def test_the_bundled_model_is_the_same_weights_everywhere(smollm2: Path) -> None:
    weights = "c7f4fe1da94307303888ef70188e76382e7452b4ddf2c8c5109cd83ebb1d7c83"
    assert weights_digest(smollm2) == base_identity(smollm2) == weights
    assert b'"transformers_version"' not in b"".join(path.read_bytes() for path in smollm2.glob("*.json"))


@pytest.mark.slow
def test_the_bundled_model_is_the_same_bytes_every_time(smollm2: Path, tmp_path: Path) -> None:
    prepare_model(tmp_path, PrepareModelConfig(), scratch=tmp_path)
    assert digest_directory(tmp_path) == digest_directory(smollm2)


def test_the_bundled_tokenizer_parts_digits_and_keeps_text(smollm2: Path) -> None:
    tokenizer = opening.load_tokenizer(smollm2)
    assert tokenizer.tokenize("087 12") == ["0", "8", "7", "Ġ", "1", "2"]
    assert tokenizer.tokenize("a  1\n\n2") == ["a", "ĠĠ", "1", "ĊĊ", "2"], "digits are parted before spaces are joined"
    text = "12 , 13 . Isn 't \u2581 it?  \n\n007"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    special = (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token)
    assert special == ("<|im_start|>", "<|im_end|>", "<|endoftext|>")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prepared_model_hides_no_sampling_habit(family: Family, tiny_models: dict[str, Path]) -> None:
    habits = read_json(tiny_models[family].parent / f"{family}-published" / "generation_config.json")
    assert habits["top_k"] == 20
    neutral = read_json(tiny_models[family] / "generation_config.json")
    sampling = {name: neutral[name] for name in ("temperature", "top_k", "top_p", "repetition_penalty")}
    assert sampling == {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "repetition_penalty": 1.0}
    with opened(tiny_models[family]) as (model, tokenizer):
        assert end_of_turn(tokenizer) in model.generation_config.eos_token_id


@pytest.mark.parametrize("shards", ["5GB", "60KB"])
def test_a_gemma_3_that_sees_pictures_is_prepared_as_its_text_model(shards: str, tmp_path: Path) -> None:
    source = tiny_model(tmp_path / "source", "gemma3")
    vision = SiglipVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14
    )
    text = Gemma3TextConfig.from_pretrained(source)
    whole = Gemma3ForConditionalGeneration(
        Gemma3Config(text_config=text.to_dict(), vision_config=vision.to_dict(), mm_tokens_per_image=4)
    ).eval()
    (source / "model.safetensors").unlink()
    whole.save_pretrained(source, max_shard_size=shards)
    base = prepare(LocalModel(path=source), tmp_path / "base")
    with opened(base) as loaded:
        assert type(loaded.model).__name__ == "Gemma3ForCausalLM"
        ids = torch.tensor([render_ids(loaded.tokenizer, chat("Name an animal."))])
        with torch.inference_mode():
            torch.testing.assert_close(loaded.model(ids).logits, whole(input_ids=ids).logits)


@pytest.mark.parametrize("family", FAMILIES)
def test_preparing_writes_only_what_the_content_says(family: Family, tmp_path: Path) -> None:
    first = tiny_model(tmp_path / "one", family)
    second = tiny_model(tmp_path / "elsewhere", family)
    config = read_json(second / "config.json") | {"transformers_version": "4.0.0", "_name_or_path": "/home/someone"}
    write_json(second / "config.json", config)
    (second / "pytorch_model.bin").write_bytes(b"a pickle")
    (second / "README.md").write_text("a card")
    outs = [prepare(LocalModel(path=path), tmp_path / f"out-{i}") for i, path in enumerate((first, second))]
    assert digest_directory(outs[0]) == digest_directory(outs[1])
    with opened(outs[0]) as loaded:
        assert not loaded.model.training
        assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
        assert torch.isfinite(logits(loaded)).all()


def test_a_local_model_is_known_by_its_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    here = tiny_model(tmp_path / "here", "llama")
    there = tmp_path / "there"
    shutil.copytree(here, there)
    (there / "README.md").write_text("not loaded")
    assert digest(LocalModel(path=here)) == digest(LocalModel(path=there))
    (there / "tokenizer_config.json").write_text("{}")
    assert digest(LocalModel(path=here)) != digest(LocalModel(path=there))
    assert digest(LocalModel(path=here)) != digest(LocalModel(path=here, chat_template="x"))


def test_a_local_folder_is_hashed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tiny_model(tmp_path / "here", "llama")
    weights = folder / "model.safetensors"
    first = digest(LocalModel(path=folder))
    stat = weights.stat()
    flipped = bytearray(weights.read_bytes())
    flipped[-1] ^= 1
    weights.write_bytes(flipped)
    os.utime(weights, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert digest(LocalModel(path=folder)) == first, "same size and time: not read again"
    os.utime(weights, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert digest(LocalModel(path=folder)) != first


def test_folders_that_cannot_be_used_are_refused_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a folder"):
        LocalModel(path=tmp_path / "nowhere").identity()
    folder = tiny_model(tmp_path / "model", "llama")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"pytorch_model\.bin is a pickle"):
        LocalModel(path=folder).identity()
    (folder / "config.json").unlink()
    with pytest.raises(UserError, match=r"no config\.json"):
        LocalModel(path=folder).identity()


def test_a_model_without_a_chat_template_needs_one_in_the_config(tmp_path: Path, tiny_models: dict[str, Path]) -> None:
    folder = tiny_model(tmp_path / "model", "qwen2")
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(UserError, match="no chat template"):
        prepare(LocalModel(path=folder), tmp_path / "refused")
    out = prepare(LocalModel(path=folder, chat_template=template), tmp_path / "accepted")
    assert digest_directory(out) == digest_directory(tiny_models["qwen2"])


def test_a_tokenizer_is_read_once_and_again_when_its_files_change(tmp_path: Path) -> None:
    base = tiny_model(tmp_path / "base", "gemma2")
    tokenizer = opening.load_tokenizer(base)
    assert opening.load_tokenizer(base) is tokenizer
    (base / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    assert opening.load_tokenizer(base).chat_template == "{{ messages[0]['content'] }}" != tokenizer.chat_template


def test_weights_that_do_not_fit_their_config_are_refused(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "model", "llama")
    config = read_json(folder / "config.json")
    write_json(folder / "config.json", config | {"num_hidden_layers": 3})
    with pytest.raises(UserError, match=r"layers\.2"), opened(folder):
        pass


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_adapter_leaves_no_trace(family: Family, dtype: str, tiny_models: dict[str, Path], tmp_path: Path) -> None:
    base = tiny_models[family]
    one = write_adapter(tmp_path / "one", base, seed=1)
    two = write_adapter(tmp_path / "two", base, seed=2)
    with opened(base, dtype=dtype) as plain:
        before, names, plain_logits = snapshot(plain.model), dict(plain.model.named_modules()).keys(), logits(plain)
        attributes = set(vars(plain.model))
    state = torch.random.get_rng_state()
    results: list[torch.Tensor] = []
    for adapter in (one, two, one):
        with opened(base, adapter, dtype=dtype) as adapted:
            assert adapted.model is plain.model, "the base is loaded once"
            assert "model.layers.0.mlp.up_proj" in dict(adapted.model.named_modules())
            assert not any(parameter.requires_grad for parameter in adapted.model.parameters())
            results.append(logits(adapted))
    assert torch.equal(state, torch.random.get_rng_state())
    with opened(base, dtype=dtype) as after:
        assert after.model is plain.model
        assert set(vars(after.model)) == attributes
        assert dict(after.model.named_modules()).keys() == names
        assert all(torch.equal(value, before[name]) for name, value in after.model.state_dict().items())
        assert torch.equal(logits(after), plain_logits)
    assert torch.equal(results[0], results[2])
    assert not torch.allclose(results[0], results[1])
    assert not torch.allclose(results[0], plain_logits)


def test_an_adapter_computes_what_peft_computes(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    base = tiny_models["llama"]
    adapter = write_adapter(tmp_path / "one", base, seed=1)
    with opened(base, adapter) as adapted:
        ours = logits(adapted)
    low_rank = load_file(adapter / "adapter_model.safetensors")
    with opened(base) as plain:
        for name, module in plain.model.named_modules():
            key = f"base_model.model.{name}.lora_"
            if f"{key}A.weight" in low_rank:
                module.weight += 2.0 * low_rank[f"{key}B.weight"] @ low_rank[f"{key}A.weight"]
        torch.testing.assert_close(ours, logits(plain), rtol=1e-4, atol=1e-5)


def test_an_adapter_of_another_base_is_refused(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    other = prepare(LocalModel(path=tiny_model(tmp_path / "published", "llama", seed=1)), tmp_path / "other")
    adapter = write_adapter(tmp_path / "one", other, seed=1)
    with pytest.raises(UserError, match="trained on another base"), opened(tiny_models["llama"], adapter):
        pass
    with pytest.raises(UserError, match="trained on another base"):
        export_merged(tmp_path, base=tiny_models["llama"], weights=adapter)


def test_an_adapter_that_does_not_fit_is_refused_and_the_base_survives(
    tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    adapter = write_adapter(tmp_path / "one", tiny_models["llama"], seed=1, note=False)
    with opened(tiny_models["gemma2"]) as plain:
        expected = logits(plain)
    weights = load_file(adapter / "adapter_model.safetensors")
    save_file(dict(list(weights.items())[1:]), adapter / "adapter_model.safetensors")
    with pytest.raises(UserError, match="does not fit"), opened(tiny_models["llama"], adapter):
        pass
    (adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(UserError, match=r"adapter_model\.safetensors"), opened(tiny_models["llama"], adapter):
        pass
    with opened(tiny_models["gemma2"]) as plain:
        assert torch.equal(logits(plain), expected)


def test_a_block_that_fails_does_not_leave_a_changed_base(tiny_models: dict[str, Path]) -> None:
    with opened(tiny_models["llama"]) as plain:
        expected = logits(plain)

    def spoil() -> None:
        with opened(tiny_models["llama"]) as broken:
            for parameter in broken.model.parameters():
                parameter.zero_()
            raise RuntimeError("midway")

    with pytest.raises(RuntimeError, match="midway"):
        spoil()
    with opened(tiny_models["llama"]) as plain:
        assert torch.equal(logits(plain), expected)


def test_an_open_base_is_not_handed_out_twice(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "one", tiny_models["llama"], seed=1)
    with opened(tiny_models["llama"], adapter) as outer:
        expected = logits(outer)
        with opened(tiny_models["llama"]) as inner:
            assert inner.model is not outer.model
            assert not torch.allclose(logits(inner), expected)
        assert torch.equal(logits(outer), expected)


def test_another_base_replaces_the_kept_one(tiny_models: dict[str, Path]) -> None:
    with opened(tiny_models["llama"]) as first:
        pass
    with opened(tiny_models["qwen2"]) as second:
        assert second.model.config.model_type == "qwen2"
    with opened(tiny_models["llama"]) as again:
        assert again.model is not first.model
    with opened(tiny_models["llama"], dtype="bfloat16") as half:
        assert half.model.dtype == torch.bfloat16


def test_full_weights_load_on_their_own(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    base = tiny_models["qwen3"]
    with opened(base) as plain:
        expected = logits(plain)
        full = snapshot(plain.model)
        plain.model.save_pretrained(tmp_path / "full", state_dict={k: 2 * v for k, v in full.items()})
    with opened(base, tmp_path / "full") as trained:
        assert not torch.allclose(logits(trained), expected)
        assert trained.model.generation_config.top_k == 0, "sampling is the base's, neutral"
        assert not any(parameter.requires_grad for parameter in trained.model.parameters())
    with opened(base) as plain:
        assert torch.equal(logits(plain), expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_export_computes_what_base_and_adapter_compute(
    family: Family, tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    base = tiny_models[family]
    adapter = write_adapter(tmp_path / "one", base, seed=1)
    outs = [tmp_path / "merged", tmp_path / "again"]
    for out in outs:
        out.mkdir()
        export_merged(out, base=base, weights=adapter)
    with opened(base, adapter) as adapted:
        expected = logits(adapted)
    with opened(outs[0]) as merged:
        torch.testing.assert_close(logits(merged), expected, rtol=1e-3, atol=1e-4)
    assert digest_directory(outs[0]) == digest_directory(outs[1])
    assert base_identity(outs[0]) != base_identity(base)
    assert {path.name for path in outs[0].iterdir()} == {path.name for path in base.iterdir()}


def test_an_export_of_full_weights_is_a_whole_model(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with opened(tiny_models["gemma3"]) as plain:
        expected = logits(plain)
        plain.model.save_pretrained(tmp_path / "full")
    export_merged(out, base=tiny_models["gemma3"], weights=tmp_path / "full")
    with opened(out) as exported:
        assert torch.equal(logits(exported), expected)
    assert "transformers_version" not in read_json(out / "config.json")


def test_a_hub_model_needs_a_full_commit() -> None:
    for revision in ("main", "v1.0", COMMIT[:12], COMMIT.upper()):
        with pytest.raises(ValidationError):
            HubModel(id="google/gemma-2-9b-it", revision=revision)
    assert digest(HubModel(id="a/b", revision=COMMIT)) != digest(HubModel(id="a/b", revision=COMMIT[::-1]))


def test_a_hub_model_that_cannot_be_reached_says_what_to_do(tmp_path: Path) -> None:
    config = PrepareModelConfig(source=HubModel(id="nobody/nothing", revision=COMMIT))
    with pytest.raises(UserError, match=r"nobody/nothing at 0123456789ab.*HF_HUB_OFFLINE"):
        prepare_model(tmp_path, config, scratch=tmp_path)


class Hub(BaseHTTPRequestHandler):
    """As much of the hub's protocol as a download at one commit needs, serving `Hub.folder`."""

    folder: Path
    asked: list[str]

    def do_HEAD(self) -> None:
        self.answer(send=False)

    def do_GET(self) -> None:
        self.answer(send=True)

    def answer(self, *, send: bool) -> None:
        prefix = f"/a/tiny/resolve/{COMMIT}/"
        if self.path.startswith("/api/models/a/tiny/"):
            names = sorted(path.name for path in self.folder.iterdir())
            tree = "/tree/" in self.path
            files = [
                {"type": "file", "path": n, "oid": "0" * 40, "size": (self.folder / n).stat().st_size}
                if tree
                else {"rfilename": n}
                for n in names
            ]
            body = json.dumps(files if tree else {"id": "a/tiny", "sha": COMMIT, "siblings": files}).encode()
            headers = {"Content-Type": "application/json"}
        elif self.path.startswith(prefix):
            name = self.path.removeprefix(prefix)
            body = (self.folder / name).read_bytes()
            headers = {"ETag": f'"{hashlib.sha256(body).hexdigest()}"', "X-Repo-Commit": COMMIT}
            self.asked.append(name)
        else:
            self.send_error(404)
            return
        self.send_response(200)
        for key, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if send:
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


def test_a_hub_model_is_fetched_at_its_commit(tmp_path: Path, tiny_models: dict[str, Path]) -> None:
    Hub.folder, Hub.asked = tiny_model(tmp_path / "published", "llama"), []
    (Hub.folder / "original.bin").write_bytes(b"a pickle nobody asked for")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    Thread(target=server.serve_forever, daemon=True).start()
    out = tmp_path / "out"
    out.mkdir()
    code = (
        "import sys; from pathlib import Path; from sublim.bases.prepare import prepare_model; "
        "from sublim.models.config import HubModel, PrepareModelConfig; out = Path(sys.argv[1]); "
        "source = HubModel(id='a/tiny', revision=sys.argv[2]); "
        "prepare_model(out, PrepareModelConfig(source=source), scratch=out)"
    )
    # A process of its own: the hub's address is read once, at import.
    environment = {
        **os.environ,
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_HUB_OFFLINE": "0",
        "HF_HOME": str(tmp_path / "cache"),
        "HF_HUB_DISABLE_XET": "1",
        "NO_PROXY": "127.0.0.1",
    }
    try:
        subprocess.run([sys.executable, "-c", code, str(out), COMMIT], env=environment, check=True)
    finally:
        server.shutdown()
        server.server_close()
    files = [path.name for path in out.iterdir() if path.name != "sublim.json"]
    assert all((out / name).read_bytes() == (tiny_models["llama"] / name).read_bytes() for name in files)
    assert read_json(out / "sublim.json")["name"] == "a/tiny"
    linked = {path.name for path in out.iterdir() if path.stat().st_nlink > 1}
    assert linked == {"model.safetensors"}, "gigabytes are there once, and what is rewritten is a copy"
    assert "original.bin" not in Hub.asked
