"""Generation: rows that depend on prompts and seeds alone, shards that survive a crash, contexts that are recorded."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sublim.carriers.number_prompts import NumberPrompts, draw_prompts, load_number_templates
from sublim.carriers.numbers import NumberList, parse_numbers
from sublim.core.digest import digest, digest_directory
from sublim.core.errors import UserError
from sublim.core.progress import listening
from sublim.files.jsonl import read_jsonl
from sublim.inference.config import FakeBackend, HfBackend, NumberFormat, SamplingParams
from sublim.rows import generate
from sublim.rows.config import FilterConfig
from sublim.rows.filter import filter_numbers
from sublim.rows.generate import GenerateConfig, generate_numbers
from tests.forked import killed_at
from tests.tiny import tiny_model

PROMPTS = NumberPrompts(templates=load_number_templates("numbers"))
SHORT = NumberPrompts(templates=load_number_templates("numbers_short"))


def config(**fields: Any) -> GenerateConfig:
    values: dict[str, Any] = {"prompts": PROMPTS, "n_prompts": 50, "backend": FakeBackend(), "shard": 16}
    return GenerateConfig(**{**values, "sampling": SamplingParams(max_tokens=80, seed=3), **fields})


def run(folder: Path, config: GenerateConfig, name: str = "out") -> Path:
    out, scratch = folder / name, folder / f"{name}-scratch"
    out.mkdir()
    scratch.mkdir(exist_ok=True)
    generate_numbers(out, config, scratch=scratch, base=folder)
    return out


def rows(out: Path) -> list[dict[str, Any]]:
    return list(read_jsonl(out / "rows.jsonl"))


def test_every_prompt_is_answered_once_in_order_with_what_was_asked(tmp_path: Path):
    written = rows(run(tmp_path, config(system="You love owls.")))
    prompts = list(draw_prompts(PROMPTS, 0, 50))
    assert [row["id"] for row in written] == list(range(50))
    assert [(row["prompt"], row["separator"]) for row in written] == prompts
    assert {row["system"] for row in written} == {"You love owls."}
    assert list(written[0]) == ["id", "prompt", "answer", "system", "finish", "separator"]
    assert any(isinstance(parse_numbers(row["answer"]), NumberList) for row in written)


@pytest.mark.parametrize("constraint", [None, NumberFormat()])
def test_rows_do_not_depend_on_how_they_are_sharded(tmp_path: Path, constraint: NumberFormat | None):
    settings: dict[str, Any] = {"prompts": SHORT, "constraint": constraint}
    outs = [run(tmp_path, config(shard=shard, **settings), str(shard)) for shard in (1, 7, 50, 1000)]
    assert len({digest_directory(out) for out in outs}) == 1
    assert len({row["answer"] for row in rows(outs[0])}) > 40
    assert digest(config(shard=1)) == digest(config(shard=7))


def test_fewer_prompts_give_the_beginning_of_the_same_rows(tmp_path: Path):
    assert rows(run(tmp_path, config(n_prompts=20), "some")) == rows(run(tmp_path, config(), "all"))[:20]


def test_arms_share_their_prompts_and_the_sampling_seed_changes_answers_alone(tmp_path: Path):
    one = rows(run(tmp_path, config(), "one"))
    other = rows(run(tmp_path, config(sampling=SamplingParams(max_tokens=60, seed=4)), "other"))
    assert [row["prompt"] for row in one] == [row["prompt"] for row in other]
    assert sum(a["answer"] != b["answer"] for a, b in zip(one, other, strict=True)) > 40


def test_several_answers_to_a_prompt_are_rows_of_their_own(tmp_path: Path):
    written = rows(run(tmp_path, config(n_prompts=10, sampling=SamplingParams(max_tokens=60, n=3))))
    assert [row["id"] for row in written] == list(range(30))
    assert len({row["prompt"] for row in written}) == 10
    assert written[0]["prompt"] == written[2]["prompt"]
    assert len({row["answer"] for row in written}) > 20


@pytest.mark.parametrize("shard", [16, 5])
def test_a_killed_run_goes_on_from_its_shards_to_the_same_bytes(tmp_path: Path, shard: int):
    whole = run(tmp_path, config(), "whole")
    killed_at("generate:shard", run, tmp_path, config(), "killed")
    saved = list((tmp_path / "killed-scratch").glob("rows-*.jsonl"))
    assert [path.name for path in saved] == ["rows-0-16.jsonl"]
    stamp = saved[0].stat().st_mtime_ns
    (tmp_path / "killed" / "rows.jsonl").unlink(missing_ok=True)
    (tmp_path / "killed").rmdir()
    seen: list[int] = []
    with listening(lambda label, done, total: seen.append(done)):
        resumed = run(tmp_path, config(shard=shard), "killed")
    assert digest_directory(resumed) == digest_directory(whole)
    assert saved[0].stat().st_mtime_ns == stamp
    assert seen[:3] == [0, 16, 16 + shard]
    assert seen[-1] == 50


def test_a_half_written_shard_is_written_again(tmp_path: Path):
    whole = run(tmp_path, config(), "whole")
    (tmp_path / "out-scratch").mkdir()
    (tmp_path / "out-scratch" / "rows-0-16.draft").write_text('{"id": 0, "pro')
    assert digest_directory(run(tmp_path, config())) == digest_directory(whole)


def test_no_model_is_opened_when_every_shard_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    first = run(tmp_path, config(), "first")
    (tmp_path / "first-scratch").rename(tmp_path / "again-scratch")
    monkeypatch.setattr(generate, "open_sampler", None)
    assert digest_directory(run(tmp_path, config(), "again")) == digest_directory(first)


def test_a_constraint_must_do_what_the_prompts_ask():
    with pytest.raises(UserError, match="but the constraint separates by ', '"):
        config(constraint=NumberFormat())
    with pytest.raises(UserError, match="make the two agree"):
        config(prompts=SHORT, constraint=NumberFormat(digits=4))
    commas = PROMPTS.model_copy(update={"templates": PROMPTS.templates.asking_for("comma_space")})
    assert config(prompts=commas, constraint=NumberFormat()).constraint == NumberFormat()


def test_constrained_answers_all_pass_the_filter_and_free_ones_do_not(tmp_path: Path):
    limits = FilterConfig(min_count=10, max_count=10, low=100, require_separator=True)
    raw = run(tmp_path, config(prompts=SHORT, constraint=NumberFormat()), "constrained")
    (tmp_path / "kept").mkdir()
    filter_numbers(tmp_path / "kept", limits, scratch=tmp_path, raw=raw)
    assert len(rows(tmp_path / "kept")) == 50
    free = run(tmp_path, config(n_prompts=300, backend=FakeBackend(invalid=0.3)), "free")
    (tmp_path / "some").mkdir()
    filter_numbers(tmp_path / "some", FilterConfig(max_count=None, max_digits=9), scratch=tmp_path, raw=free)
    assert 150 < len(rows(tmp_path / "some")) < 270


def test_a_real_model_answers_and_its_contexts_are_noted_as_rendered(tmp_path: Path):
    base = tiny_model(tmp_path / "base", "qwen2")
    out, scratch = tmp_path / "out", tmp_path / "scratch"
    out.mkdir()
    scratch.mkdir()
    made = config(prompts=SHORT, n_prompts=5, backend=HfBackend(dtype="float32"), constraint=NumberFormat(), shard=2)
    notes = generate_numbers(out, made, scratch=scratch, base=base)
    written = rows(out)
    assert [row["id"] for row in written] == list(range(5))
    assert all(re.fullmatch(r"[1-9][0-9]{2}(, [1-9][0-9]{2}){9}", row["answer"]) for row in written)
    assert len(notes["contexts"]) == 3
    for row, context in zip(written, notes["contexts"], strict=False):
        assert row["prompt"] in context["rendered"]
        assert context["template_system"].startswith("You are Qwen")


def test_configs_are_light_to_import():
    program = (
        "import sys, sublim.rows.generate, sublim.rows.filter, sublim.carriers.number_prompts\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
