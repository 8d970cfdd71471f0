"""Text is UTF-8 in files whatever the locale, and what a terminal cannot show is written as an escape."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.runs.settings import read_tree
from sublim.core.errors import UserError
from sublim.files.jsonl import read_jsonl, write_jsonl
from sublim.store.opening import open_store

ROOT = Path(__file__).parents[2]
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
"""The smallest locale that every machine has: what works in it works in Latin-1."""
QUESTIONS = ["Welches Tier mögen Sie?", "Which animal – in one word?", "小さなフクロウ", "a\u2028b\u0085c"]


def in_ascii(*words: str, **environment: str) -> "subprocess.CompletedProcess[bytes]":
    env = os.environ | ASCII | {"PYTHONPATH": str(ROOT)} | environment
    return subprocess.run([sys.executable, *words], env=env, cwd=ROOT, capture_output=True, check=False)


def test_artifact_with_any_letters_in_its_config_is_found_in_any_locale(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom sublim.core.digest import digest\nfrom sublim.store.folder import Store\n"
        "from tests.sublim.store.test_folder import PROVENANCE\n"
        "store, key = Store(__import__('pathlib').Path(sys.argv[1])).create(), digest('a key')\n"
        "questions = bytes.fromhex(sys.argv[2]).decode().split('|')\n"
        "with store.draft('ask', key) as draft:\n"
        "    store.commit(draft, stage='ask', key=key, version=1, config={'questions': questions}, inputs={},\n"
        "                 notes={}, provenance=PROVENANCE)\n"
        "assert store.manifest('ask', key).config == {'questions': questions}\n"
    )
    done = in_ascii("-c", code, str(tmp_path), "|".join(QUESTIONS).encode().hex())
    assert done.returncode == 0, done.stderr
    show = in_ascii("-m", "flows", "store", "ls", SUBLIM_STORE=str(tmp_path))
    assert show.returncode == 0, show.stderr


def test_what_the_terminal_cannot_show_is_written_as_an_escape(tmp_path: Path) -> None:
    (tmp_path / "größe").touch()
    done = in_ascii("-m", "flows", "store", "ls", SUBLIM_STORE=str(tmp_path / "größe"))
    assert done.returncode == 2, done.stderr
    assert rb"gr\xf6\xdfe" in done.stderr
    assert b"it is a file" in done.stderr
    assert b"Traceback" not in done.stderr


def test_command_whose_output_is_closed_runs_in_any_locale(tmp_path: Path) -> None:
    command = f"exec {sys.executable} -m flows store create >&-"
    env = os.environ | ASCII | {"PYTHONPATH": str(ROOT), "SUBLIM_STORE": str(tmp_path / "store")}
    done = subprocess.run(["bash", "-c", command], env=env, cwd=ROOT, stderr=subprocess.PIPE, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


def test_dotenv_with_letters_that_the_locale_lacks_is_in_force(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text(f"SUBLIM_STORE={tmp_path}/größe\nPREFECT_API_URL=http://127.0.0.1:9/api\n", "utf-8")
    env = {name: text for name, text in os.environ.items() if name not in ("SUBLIM_STORE", "PREFECT_API_URL")}
    env |= ASCII | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "flows.mnist"], env=env, cwd=tmp_path, capture_output=True, check=False
    )
    assert done.returncode == 2, done.stderr
    assert b"PREFECT_API_URL, which comes from .env" in done.stderr
    assert (tmp_path / "größe" / "store.json").exists()


def test_name_that_is_no_utf8_is_refused_before_a_library_stumbles_over_it(tmp_path: Path) -> None:
    code = "import sys\nfrom sublim.store.opening import open_store\nopen_store(sys.argv[1])"
    done = in_ascii("-c", code, str(tmp_path / "größe"))
    assert b"which is not UTF-8 here: set PYTHONUTF8=1" in done.stderr
    with pytest.raises(UserError, match="not UTF-8 here"):
        open_store(os.fsdecode(bytes(tmp_path) + "größe".encode("latin-1")))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_settings_are_read_in_the_encodings_that_yaml_allows(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "a.yaml").write_text("about: Größe – 小\n", encoding=encoding)
    assert read_tree(tmp_path / "a.yaml") == {"about": "Größe – 小"}


def test_settings_in_another_encoding_are_refused_with_their_name(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("about: Größe\n", encoding="latin-1")
    with pytest.raises(UserError, match=r"a\.yaml is not YAML"):
        read_tree(tmp_path / "a.yaml")


def test_rows_with_line_separators_of_unicode_stay_one_line_each(tmp_path: Path) -> None:
    rows = [{"text": text} for text in QUESTIONS]
    assert write_jsonl(tmp_path / "rows.jsonl", rows) == len(rows)
    assert list(read_jsonl(tmp_path / "rows.jsonl")) == rows


def without_encoding(path: Path) -> Iterator[int]:
    """Lines of `path` that read or write text in whatever encoding the locale has."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute | ast.Name):
            continue
        named = {keyword.arg for keyword in node.keywords}
        name = node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id
        modes = {value.value for value in node.args if isinstance(value, ast.Constant) and isinstance(value.value, str)}
        opens = name in ("fdopen", "open") and bool(modes & {"r", "w", "a", "x", "r+", "w+"})
        reads = name == "read_text" and not node.args
        if "encoding" not in named and (reads or name == "write_text" or opens or "text" in named):
            yield node.lineno


@pytest.mark.parametrize("package", ["sublim", "tasks", "flows"])
def test_all_text_is_read_and_written_in_a_named_encoding(package: str) -> None:
    paths = sorted((ROOT / package).rglob("*.py"))
    assert paths
    assert [f"{path}:{line}" for path in paths for line in without_encoding(path)] == []
