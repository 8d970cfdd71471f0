"""A small published model and settings that run the whole pipeline on it within seconds."""

from pathlib import Path

import pytest

from tests.tiny import tiny_model


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random model as its makers would publish it."""
    return tiny_model(tmp_path_factory.mktemp("published"), "qwen2")


@pytest.fixture
def small(published: Path) -> list[str]:
    """Options that make the quickstart small: every stage real, on the tiny model."""
    return small_options(published)


def small_options(published: Path) -> list[str]:
    """The same for fixtures of a wider scope."""
    settings = [
        "model.kind=local",
        f"model.path={published}",
        "carrier.prompts=24",
        "filter.keep=24",
        "teacher.train.updates=2",
        "student.updates=3",
        "student.batch_size=4",
        "student.warmup_updates=1",
        "student.max_length=600",
        "seeds=[0, 1]",
        "evaluation.samples=1",
    ]
    return [part for setting in settings for part in ("--set", setting)]
