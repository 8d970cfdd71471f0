import errno
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from safetensors.numpy import save_file

from sublim.core.errors import no_space


def raised(write: Callable[[], object]) -> BaseException:
    with pytest.raises(BaseException) as caught:  # noqa: PT011 - each library has its own
        write()
    return caught.value


def test_full_disk_is_known_in_whatever_error_a_library_makes_of_it(small_share: Path, tmp_path: Path) -> None:
    table, tensors = pl.DataFrame({"a": np.random.default_rng(0).random(200_000)}), {"a": np.zeros(200_000)}
    writes: list[Callable[[], object]] = [
        lambda: (small_share / "text").write_text("x" * 2_000_000),
        lambda: table.write_parquet(small_share / "table.parquet"),
        lambda: table.write_csv(small_share / "table.csv"),
        lambda: save_file(tensors, small_share / "tensors"),
    ]
    for write in writes:
        assert no_space(raised(write), tmp_path)  # by the error alone: this folder has room
        for path in small_share.iterdir():
            path.unlink()


def test_other_errors_are_not_taken_for_a_full_disk(tmp_path: Path) -> None:
    assert not no_space(OSError(errno.EACCES, "denied"), tmp_path)
    assert not no_space(ValueError("a bug"), tmp_path)


def test_cause_counts_and_so_does_what_was_being_handled(tmp_path: Path) -> None:
    def wrap() -> None:
        try:
            raise OSError(errno.ENOSPC, "full")
        except OSError as error:
            raise RuntimeError("writing failed") from error

    assert no_space(raised(wrap), tmp_path)
