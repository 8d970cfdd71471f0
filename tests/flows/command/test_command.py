"""The command: bad input in one line with exit code 2, and what it prints of the store."""

import subprocess
import sys
from pathlib import Path

import pytest

from flows.__main__ import COMMANDS, main
from sublim.core.provenance import code_version
from sublim.store.folder import Store
from tests.tiny import tiny_model


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line that a refused command prints."""
    assert main([*arguments]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    return lines[0]


@pytest.fixture(autouse=True)
def no_server(store_root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A mistake is found before any server is asked or started."""
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    monkeypatch.setenv("SUBLIM_HOME", str(tmp_path / "home"))


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["stor", "ls"], 'sublim: Unknown command "stor"'),
        (["run", "pipelin"], "Did you mean"),
        (["store", "gc", "--dry"], "--dry-run"),
        (["power"], "--effect"),
        (["worker", "--limit", "many"], "many"),
    ],
)
def test_unknown_command_option_or_value_is_refused(
    arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert told in refused(capsys, *arguments)


def test_help_that_was_asked_for_is_no_mistake_and_a_missing_command_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert [main([]), main(["store"]), main(["--help"]), main(["store", "-h"]), main(["--version"])] == [2, 2, 0, 0, 0]
    text = capsys.readouterr().out
    assert all(name in text for commands in COMMANDS.values() for name in commands)


def test_every_command_can_be_loaded(capsys: pytest.CaptureFixture[str]) -> None:
    for name in (name for commands in COMMANDS.values() for name in commands):
        assert main([name, "--help"]) == 0
        assert f"Usage: sublim {name}" in capsys.readouterr().out


@pytest.mark.parametrize("words", [["--help"], ["run", "pipeline", "--help"], ["presets"]])
def test_help_and_lists_import_nothing_slow(words: list[str]) -> None:
    code = "import sys; from flows.__main__ import main; main(sys.argv[1:]); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True)
    assert not {"prefect", "httpx", "torch", "polars", "scipy", "boto3"} & {*done.stdout.splitlines()[-1].split()}


@pytest.mark.parametrize("words", ["run pipeline --help", "--help", "presets"])
def test_reader_who_goes_away_is_no_failure(words: str) -> None:
    command = f"set -o pipefail; {sys.executable} -u -m flows {words} | head -n 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_unknown_preset_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert "did you mean quickstart" in refused(capsys, "run", "pipeline", "--preset", "quickstrt")


def test_unknown_key_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert "student.method.rank" in refused(capsys, "run", "pipeline", "--set", "student.rnk=3")


def test_target_of_two_words_or_of_none_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert "not one word" in refused(capsys, "run", "pipeline", "--target", "snowy owl")
    # As a shell hands over a variable that is not set.
    assert "not one word" in refused(capsys, "run", "pipeline", "--target", "")


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("carrier.examples_min=9", "carrier: examples_min 9 is above examples_max 7"),
        ("carrier.low=1000", "carrier: low 1000 is above high 999"),
        ("carrier.prompts=0", "carrier.prompts: input should be greater than or equal to 1"),
        ("carrier.prompts=100", "100 answers are drawn, 256 valid ones wanted"),
        ("filter.held_out=1", "256 answers are drawn, 257 valid ones wanted"),
        ("student.betas=[0.9]", "student.betas.1 is missing: add --set student.betas.1=VALUE"),
        ("seeds=[-1]", "seeds.0: input should be greater than or equal to 0"),
        ("evaluation.samples=-1", "evaluation.samples: input should be greater than or equal to 0"),
        ("evaluation.updates=[8, 17]", "has 17 and students make 16 updates"),
        ("student.trainer=unsloth", "unsloth cannot run here: it needs an NVIDIA GPU"),
        ("teacher.train.attention=flash_attention_2", "teacher.train.attention: flash_attention_2 cannot run here"),
        ("student.attention=flash_attention_2", "student.attention: flash_attention_2 cannot run here"),
        ("backend.attention=flash_attention_2", "backend.attention: flash_attention_2 cannot run here"),
        ("backend={kind: openai, base_url: 'http://h/v1', model: m}", "a server cannot load the weights"),
    ],
)
def test_what_would_fail_hours_later_is_refused_at_once_and_writes_nothing(
    setting: str, says: str, capsys: pytest.CaptureFixture[str], store_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sublim.training.config.gpu", lambda: None)
    assert says in refused(capsys, "run", "pipeline", "--set", setting)
    assert not store_root.exists()


def test_prompt_file_with_a_missing_field_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("opening: ['{examples}']\nrequest: ['{count} {digits}']\nclosing: ['Go.']\n")
    line = refused(capsys, "run", "pipeline", "--set", f"carrier.templates={path}")
    assert "mine.yaml" in line
    assert "format is missing" in line


def test_comparison_list_with_nothing_to_compare_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert "owl" in refused(capsys, "run", "pipeline", "--set", "evaluation.words=[owl]")


def test_comparison_list_with_two_that_score_as_one_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert "owls" in refused(capsys, "run", "pipeline", "--set", "evaluation.words=[owl, Owls, cat]").lower()


def test_preset_for_a_gpu_is_refused_without_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert "need a GPU of 44 GiB" in refused(capsys, "run", "pipeline", "--preset", "gemma-2-9b-a6000")


def test_model_without_a_chat_template_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "model", "llama")
    for path in (model / "chat_template.jinja",):
        path.unlink(missing_ok=True)
    line = refused(capsys, "run", "pipeline", "--set", "model.kind=local", "--set", f"model.path={model}")
    assert "chat template" in line


def test_server_that_does_not_answer_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert "no Prefect server answers" in refused(capsys, "run", "pipeline")


def test_store_of_a_newer_version_is_refused(capsys: pytest.CaptureFixture[str], store_root: Path) -> None:
    store_root.mkdir()
    (store_root / "store.json").write_text('{"format": 99}')
    assert "update sublim" in refused(capsys, "store", "ls")
    assert "update sublim" in refused(capsys, "run", "pipeline")
    assert [path.name for path in store_root.iterdir()] == ["store.json"]


def test_short_or_unknown_key_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert "six or more" in refused(capsys, "show", "abc")
    assert "sublim store ls" in refused(capsys, "show", "abcdef")


def test_help_lists_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "pipeline", "--help"]) == 0
    text = capsys.readouterr().out
    assert "student.method.rank" in text
    assert "carrier.prompts" in text


def test_presets_are_listed_with_what_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["presets"]) == 0
    assert "quickstart" in capsys.readouterr().out


def test_doctor_names_what_is_here(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    assert "torch 2.13.0" in text
    assert "bundled model smollm2" in text


def test_checkout_is_named_in_provenance(store_root: Path) -> None:
    commit, dirty = code_version()
    assert commit is None or len(commit) == 40
    assert (commit is None) == (dirty is None)
    assert Store(store_root).create().root == store_root


def test_verify_names_what_is_damaged(capsys: pytest.CaptureFixture[str], store_root: Path) -> None:
    store = Store(store_root).create()
    (store.root / "ask" / "0123456789ab").mkdir(parents=True)
    (store.root / "ask" / "0123456789ab" / "manifest.json").write_text("{}")
    assert main(["store", "verify"]) == 1
    assert "ask/0123456789ab has no readable manifest" in capsys.readouterr().out


def test_an_empty_store_says_so_beside_what_programs_read(capsys: pytest.CaptureFixture[str], store_root: Path) -> None:
    assert main(["runs"]) == 0
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert f"no runs in {store_root} yet" in err
    assert main(["runs", "--json"]) == 0
    assert capsys.readouterr() == ("[]\n", "")
    assert main(["store", "ls"]) == 0
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("0.0 MiB in all\n", 1)
    assert "no artifacts" in err
