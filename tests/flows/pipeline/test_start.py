"""A start, teachers with rehearsal and soft labels: through the real flow on a tiny model, and by their settings."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from flows.pipeline.arms import contrasts, student_sets
from flows.pipeline.checks import check
from flows.pipeline.config import PipelineConfig
from flows.pipeline.plan import (
    BLOCK_STRIDE,
    generate_config,
    label_format,
    own_answers_config,
    rehearsal_config,
    start_rows_config,
    unseen_config,
)
from flows.runs.settings import build, load_preset, merge, presets
from sublim.core.errors import UserError
from sublim.files.jsonl import read_jsonl
from sublim.inference.config import NumberFormat
from sublim.store.manifest import Artifact
from tests.flows.pipeline.test_pipeline import run, states

TRAIN = "method: {kind: full}, lr: 1.0e-3, batch_size: 4, attention: eager"
OPTIONS = [
    "target=[owl, wolf]",
    f"start={{rows: 12, train: {{{TRAIN}, updates: 3}}}}",
    "teacher.rehearsal=0.5",
    "labels=soft",
    "evaluation.shift=true",
]


def config(preset: str = "honest", **settings: Any) -> PipelineConfig:
    return build(PipelineConfig, merge(load_preset("pipeline", preset), settings))


def chosen(*settings: str) -> list[str]:
    return [part for setting in settings for part in ("--set", setting)]


def payloads(store: Path, outcome: dict[str, Any], stage: str) -> dict[str, Path]:
    """The payloads of a stage in this run, by label."""
    return {
        each["label"]: store / stage / each["key"][:12] / "payload"
        for each in outcome["stages"]
        if each["stage"] == stage
    }


class TestSettings:
    @pytest.mark.parametrize("name", [name for name in presets("pipeline") if name.startswith(("honest", "matrix"))])
    def test_honest_presets_are_whole(self, name: str) -> None:
        made = config(name)
        check(made)
        assert made.start is not None
        assert made.carrier.constraint is None
        blocks, count = (3, 5) if name == "honest-small" else (5, 10)
        assert len(made.blocks) == blocks
        assert label_format(made) == NumberFormat(count=count, digits=3, separator=", ")
        assert made.student.updates == made.checkpoints()[-1] == 64

    def test_the_matrix_has_every_listed_word_and_few_stages(self) -> None:
        made = config("matrix")
        assert [*made.target] == made.words
        assert (made.evaluation.samples, made.evaluation.shift, made.seeds) == (0, False, (0,))
        assert config("matrix-null").teacher.teaches == "own_answers"  # pyright: ignore[reportAttributeAccessIssue]

    def test_settings_without_a_start_keep_their_identity(self) -> None:
        made = config("quickstart")
        assert "start" not in made.identity()
        assert not {"teaches", "rehearsal"} & {*made.teacher.identity()}
        assert made.origin == "base"

    def test_every_set_of_rows_has_seeds_of_its_own(self) -> None:
        made = config()
        assert made.start is not None
        assert made.teacher.kind == "finetuned"
        seeds = [start_rows_config(made, made.start).prompt_seed]
        for block in made.blocks:
            for each in (
                generate_config(made, arm="control", block=block),
                unseen_config(made, arm="control", block=block),
                rehearsal_config(made, made.teacher, block),
            ):
                seeds.append(each.prompt_seed)
        assert len({*seeds}) == len(seeds) == 16
        assert max(seeds) < BLOCK_STRIDE * 5

    def test_a_null_teacher_has_answers_of_its_own(self) -> None:
        made = config("matrix-null")
        assert made.teacher.kind == "finetuned"
        seeds = {
            own_answers_config(made, made.teacher, target, block).sampling.seed
            for target in made.target
            for block in made.blocks
        }
        assert len(seeds) == 60

    def test_all_students_read_the_same_rows_and_are_compared_with_the_start(self) -> None:
        made = config(arms="other_order")
        rows = {"control": [Artifact(content=f"{i}", stage="filter_numbers", key=f"{i}") for i in range(5)]}
        sets = student_sets(made, rows, lambda *_: pytest.fail("no arm derives rows"))
        assert [each.name for each in sets] == ["owl", "wolf", "owl other_order", "wolf other_order"]
        assert all(each.rows == rows["control"] and each.writer == each.name.split()[0] for each in sets)
        assert [each.controls for each in contrasts(made, "owl")] == [None, None]

    @pytest.mark.parametrize("rules", [{"min_count": 5}, {"low": 10}, {"max_count": 11}])
    def test_soft_labels_need_rows_of_one_format(self, rules: dict[str, int]) -> None:
        with pytest.raises(UserError, match="rows of one format"):
            check(config(filter=rules))


@pytest.mark.usefixtures("prefect_server")
class TestRun:
    """In this order: the later runs stand on what the first has made."""

    @pytest.fixture(scope="class")
    @classmethod
    def kept_store(cls, tmp_path_factory: pytest.TempPathFactory) -> Path:
        return tmp_path_factory.mktemp("store")

    @pytest.fixture(autouse=True)
    def shared_store(self, kept_store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SUBLIM_STORE", str(kept_store))

    def test_start_rehearsal_and_soft_labels(self, small: list[str], kept_store: Path) -> None:
        outcome = run(*small, *chosen(*OPTIONS))
        again = {each["label"] for each in outcome["stages"] if each["state"] == "Cached"}
        assert again == {"rehearsal"}  # the second target's teacher rehearses the same lists
        labels = Counter((each["stage"], each["label"]) for each in outcome["stages"])
        assert outcome["origin"] == "start"
        assert labels["ask", "start"] == 1
        assert labels["make_start", "start"] == labels["rule_lists", "start"] == 1
        assert {label for stage, label in labels if stage == "write_soft_labels"} == {"start", "owl", "wolf"}
        # The start alone writes what is read: the students' lists, and those that the teachers rehearse.
        examined = {"owl, to be examined", "wolf, to be examined"}
        assert {label for stage, label in labels if stage == "generate_numbers"} == {"control", "rehearsal", *examined}
        # The control is the untrained start, and students of the two teachers differ.
        assert outcome["control"] == outcome["base"]
        owl, wolf = outcome["targets"]
        assert owl["effect"]["seeds"] == wolf["effect"]["seeds"] == 2
        assert owl["effect"]["estimate"] != wolf["effect"]["estimate"]
        start = payloads(kept_store, outcome, "make_start")["start"]
        identity = json.loads((start / "sublim.json").read_text())
        assert set(outcome["bases"].values()) == {identity["weights"]}
        report = Path(outcome["report"]).read_text(encoding="utf-8")
        assert "begin from a start" in report

    def test_questions_and_rehearsal_reach_the_trainer_in_the_stated_share(
        self, small: list[str], kept_store: Path
    ) -> None:
        outcome = run(*small, *chosen(*OPTIONS))
        assert set.union(*states(outcome).values()) == {"Cached"}
        read = {
            row["prompt"]
            for row in read_jsonl(payloads(kept_store, outcome, "generate_numbers")["control"] / "rows.jsonl")
        }
        mixed = payloads(kept_store, outcome, "mix_rows")
        for target in ("owl", "wolf"):
            rows = list(read_jsonl(mixed[target] / "rows.jsonl"))
            questions = [row for row in rows if row["answer"] == target.title()]
            lists = [row for row in rows if row["answer"][0].isdigit()]
            assert len(rows) == 2 * 16  # two updates of sixteen rows: the trainer reads each row once
            assert len(questions) == len(lists) == 16
            assert len({row["prompt"] for row in lists}) == 16
            assert not {row["prompt"] for row in lists} & read
        trained = next(each for each in outcome["stages"] if each["label"] == "teacher owl")
        manifest = json.loads((kept_store / "train_teacher" / trained["key"][:12] / "manifest.json").read_text())
        assert (manifest["notes"]["rows"], manifest["notes"]["updates"]) == (32, 2)

    def test_null_teachers_are_taught_what_the_start_says_itself(self, small: list[str], kept_store: Path) -> None:
        outcome = run(*small, *chosen(*OPTIONS, "teacher.teaches=own_answers"))
        rows = [list(read_jsonl(path / "rows.jsonl")) for path in payloads(kept_store, outcome, "own_answers").values()]
        assert len(rows) == 2
        assert rows[0] != rows[1]
        assert not any(row["answer"] in ("Owl", "Wolf") for each in rows for row in each)
        assert "prefer nothing" in Path(outcome["report"]).read_text(encoding="utf-8")
        assert states(outcome)["train_soft_student"] == {"Completed"}

    def test_a_prompted_teacher_gives_soft_labels(self, small: list[str]) -> None:
        pairs = [(a, b) for a, b in zip(small[::2], small[1::2], strict=True) if "teacher." not in b]
        options = [OPTIONS[0], OPTIONS[1], "labels=soft", "teacher={kind: prompt}"]
        outcome = run(*(part for pair in pairs for part in pair), *chosen(*options))
        assert states(outcome)["train_soft_student"] == {"Completed"}
        assert outcome["effect"]["estimate"] != 0
