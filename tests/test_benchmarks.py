"""What `make bench` runs can be started: a benchmark is no test, so nothing else would notice."""

import importlib
from pathlib import Path

import pytest

BENCHMARKS = sorted(path.stem for path in (Path(__file__).parent / "benchmarks").glob("[a-z]*.py"))


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_can_be_started(name: str) -> None:
    assert importlib.import_module(f"tests.benchmarks.{name}").__doc__
