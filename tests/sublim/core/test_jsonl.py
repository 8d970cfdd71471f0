import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sublim.core.errors import UserError
from sublim.files.jsonl import read_jsonl, write_jsonl

cells = st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.text(st.characters(codec="utf-8"))
rows = st.lists(st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=5), cells, max_size=4), max_size=5)


@given(rows)
def test_rows_come_back_as_they_were(tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, object]]) -> None:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    assert write_jsonl(path, iter(rows)) == len(rows)
    assert list(read_jsonl(path)) == rows
    assert path.read_bytes().count(b"\n") == len(rows)


def test_keys_keep_their_order_and_text_stays_utf8(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a", [{"z": "é\u2028\n", "a": np.float32(0.5)}])
    assert (tmp_path / "a").read_text() == '{"z":"é\u2028\\n","a":0.5}\n'


def test_empty_lines_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "a").write_text('\n{"n": 1}\n   \n{"n": 2}')
    assert list(read_jsonl(tmp_path / "a")) == [{"n": 1}, {"n": 2}]


@pytest.mark.parametrize("line", ["{", "[1]", "3", '{"a": NaN}', "\x00"])
def test_line_that_is_no_object_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "a.jsonl").write_text(f'{{"n": 1}}\n{line}\n')
    reader = read_jsonl(tmp_path / "a.jsonl")
    assert next(reader) == {"n": 1}
    with pytest.raises(UserError, match=r"a\.jsonl:2 is not"):
        next(reader)


def test_line_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"n": "\xff"}\n')
    with pytest.raises(UserError, match=r"a\.jsonl:1 is not"):
        list(read_jsonl(tmp_path / "a.jsonl"))


def test_missing_value_is_written_as_null(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a", [{"n": math.nan}])
    assert list(read_jsonl(tmp_path / "a")) == [{"n": None}]


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    """300,000 rows of 200 bytes pass through a process that may grow by far less than they weigh."""
    code = (
        "import resource, sys\nfrom pathlib import Path\nfrom sublim.files.jsonl import read_jsonl, write_jsonl\n"
        "path = Path(sys.argv[1])\nbefore = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "assert write_jsonl(path, ({'n': n, 'text': 'x' * 200} for n in range(300_000))) == 300_000\n"
        "assert sum(row['n'] for row in read_jsonl(path)) == 300_000 * 299_999 // 2\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "big")], capture_output=True, text=True, check=True
    )
    assert (tmp_path / "big").stat().st_size > 60_000_000
    assert int(done.stdout) * (1024 if sys.platform == "linux" else 1) < 20_000_000
