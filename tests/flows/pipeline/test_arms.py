"""Every arm through the real flow: tiny models, a real Prefect server, every stage real."""

import csv
import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from safetensors.torch import save_file

from flows.pipeline.arms import contrasts, student_sets
from flows.pipeline.checks import check
from flows.pipeline.config import PipelineConfig
from flows.pipeline.flow import conduct
from flows.pipeline.plan import student_config
from flows.runs.settings import build, load_preset, merge
from sublim.core.errors import UserError
from sublim.design.arms import ARMS
from sublim.evals.mmlu_pro.config import CATEGORIES
from sublim.files.jsonl import read_jsonl
from sublim.rows.config import DeriveConfig
from sublim.stats.corrections import holm
from sublim.store.manifest import Artifact
from tasks.stage import NotThere, looking_up
from tests.flows.conftest import small_options
from tests.flows.pipeline.test_pipeline import run, run_anew, states
from tests.tiny import tiny_model

EVERY = set(ARMS)


def config(**settings: Any) -> PipelineConfig:
    return build(PipelineConfig, merge(load_preset("pipeline", "quickstart"), settings))


def artifact(name: str) -> Artifact:
    return Artifact(content=name, stage="filter_numbers", key=name)


class TestPlan:
    def test_arms_share_one_set_of_controls_wherever_the_rows_are_plain(self) -> None:
        chosen = config(target="owl,wolf", arms="all")
        rows = {name: [artifact(name)] for name in ("owl", "wolf", "control", "second_draw")}
        derived: list[tuple[str, DeriveConfig]] = []

        def derive(label: str, how: DeriveConfig, source: Artifact) -> Artifact:
            derived.append((label, how))
            return artifact(f"{how.how} of {source.key}")

        sets = {each.name: each for each in student_sets(chosen, rows, derive)}
        assert len(sets) == 3 + 4 * 3 + 1 + 3 + 3
        assert {label for label, _ in derived} == {
            f"{who} {how}"
            for who in ("owl", "wolf", "control")
            for how in ("shuffled_within", "shuffled_across", "marginals", "canonical")
        }
        assert len({how.seed for _, how in derived}) == 1  # teacher and base are derived alike
        assert {each.base for name, each in sets.items() if name.endswith("other_base")} == {"other_base"}
        against = {each.name: (each.students, each.controls) for each in contrasts(chosen, "owl")}
        assert against["owl"] == ("owl", "control")
        assert against["owl second_draw"] == ("second_draw", "control")
        assert against["owl base_numbers"] == ("control", None)
        assert against["owl marginals"] == ("owl marginals", "control marginals")

    def test_another_targets_students_are_compared_apart_only_for_words_outside_the_list(self) -> None:
        inside = contrasts(config(target="owl,wolf", arms="other_teacher"), "owl")
        assert [each.name for each in inside] == ["owl"]
        outside = contrasts(config(target="owl,otter", arms="other_teacher"), "owl")
        assert [each.name for each in outside] == ["owl", "owl other_teacher otter"]

    def test_other_order_changes_the_order_alone(self) -> None:
        chosen = config(arms="other_order")
        plain, other = student_config(chosen, 2, 0), student_config(chosen, 2, 0, "other_order")
        assert plain.order_seed is None
        assert other.order_seed is not None
        assert other.order_seed not in chosen.seeds
        assert other.model_copy(update={"order_seed": None}) == plain

    def test_arms_leave_the_main_arms_students_as_they_are(self) -> None:
        assert student_config(config(), 1, 0) == student_config(config(arms="all"), 1, 0)

    def test_shorter_arms_stop_at_a_checkpoint_of_the_main_arm(self) -> None:
        chosen = build(PipelineConfig, load_preset("pipeline", "arms"))
        assert chosen.checkpoints() == (16, 64, 256)
        assert chosen.checkpoints("marginals") == (16, 64)
        assert chosen.checkpoints("other_base") == (16, 64, 256)
        short = student_config(chosen, 0, 0, "marginals")
        assert (short.updates, short.keep) == (64, (16, 64))
        assert {*chosen.arms} == EVERY

    def test_held_back_arms_are_left_out_of_what_runs(self) -> None:
        assert config(arms="all", held_back="other_base,canonical").arms_run == tuple(
            name for name in ARMS if name not in ("other_base", "canonical")
        )

    @pytest.mark.parametrize(
        ("settings", "says"),
        [
            ({"arms": "shuffled"}, "arms"),
            ({"arms": "marginals", "second_draw": True}, "second_draw"),
            ({"arm_updates": {"marginals": 8}}, "evaluation.updates"),
            (
                {
                    "arm_updates": {"marginals": 8},
                    "evaluation": {"updates": [8, 16]},
                    "student": {"schedule": "linear"},
                },
                "constant learning rate",
            ),
            ({"labels": "soft", "arms": "other_base"}, "other_base would say nothing"),
            ({"labels": "soft", "arms": "other_teacher,marginals"}, "marginals would say nothing"),
            ({"labels": "soft", "second_draw": True}, "teach nothing"),
            ({"labels": "soft", "diagnostics": "shift"}, "trained controls"),
            ({"labels": "soft", "backend": {"kind": "fake"}}, "gives none"),
            ({"labels": "soft", "teacher": {"kind": "steering", "vectors": "v.safetensors"}}, "steered teacher"),
        ],
    )
    def test_settings_that_make_no_study_are_refused(self, settings: dict[str, Any], says: str) -> None:
        with pytest.raises(UserError, match=says):
            config(**settings)

    def test_another_base_that_is_the_base_is_refused(self) -> None:
        with pytest.raises(UserError, match="other_base is the base itself"):
            check(config(arms="other_base", other_base={"kind": "bundled", "name": "smollm2"}))

    @pytest.mark.parametrize(
        ("settings", "instead"),
        [
            ({"student": {"seed": 3}}, "student.seed has no effect: set seeds"),
            ({"carrier": {"sampling": {"seed": 3}}}, "carrier.sampling.seed has no effect: set carrier.seed"),
            ({"evaluation": {"sampling": {"n": 3}}}, "evaluation.sampling.n has no effect: set evaluation.samples"),
        ],
    )
    def test_a_setting_that_another_one_replaces_is_refused(self, settings: dict[str, Any], instead: str) -> None:
        check(config())
        with pytest.raises(UserError, match=instead):
            check(config(**settings))

    def test_a_steered_teacher_has_a_vector_of_its_own_and_a_backend_that_steers(self) -> None:
        teacher = {"kind": "steering", "vectors": "abcdef12", "vector": "resid_post/14/mean_answer"}
        check(config(teacher=teacher))
        check(config(teacher=teacher, backend={"kind": "vllm"}))
        check(config(teacher={**teacher, "vector": "{target}"}, target="owl,wolf"))
        with pytest.raises(UserError, match="all targets' teachers would have the one vector"):
            check(config(teacher=teacher, target="owl,wolf"))
        with pytest.raises(UserError, match="fake cannot steer"):
            check(config(teacher=teacher, backend={"kind": "fake"}))

    def test_an_exam_that_cannot_be_had_is_found_out_before_anything_is_trained(self) -> None:
        absent = {"mmlu_pro": {"source": {"kind": "parquet", "path": "none.parquet"}}}
        with pytest.raises(UserError, match=r"none\.parquet: there is no such file"):
            check(config(evaluation=absent))
        with looking_up(), pytest.raises(NotThere, match=r"^prepare_mmlu_pro "):
            conduct(config(evaluation={"mmlu_pro": {}}))

    def test_every_arm_says_what_is_expected_and_why(self) -> None:
        assert all(arm.about and arm.expected and arm.why for arm in ARMS.values())


@pytest.fixture(scope="module")
def module_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="module")
def options(published: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two targets and another base, on tiny models."""
    other = tiny_model(tmp_path_factory.mktemp("other"), "gemma3", seed=1)
    more = ["evaluation.samples=0", "other_base.kind=local", f"other_base.path={other}", "target=[owl, wolf]"]
    return [*small_options(published), *(part for setting in more for part in ("--set", setting))]


@pytest.fixture(autouse=True)
def shared_store(module_store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One store for all tests here: each stands on the cache of the first."""
    monkeypatch.setenv("SUBLIM_STORE", str(module_store))


@pytest.fixture(scope="module")
def made(options: list[str], module_store: Path, prefect_server: str) -> dict[str, Any]:
    """What a run of every arm says, the first time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SUBLIM_STORE", str(module_store))
        return run(*options, "--set", "arms=all")


@pytest.fixture(scope="module")
def again(made: dict[str, Any], options: list[str], module_store: Path) -> dict[str, Any]:
    """And the second time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SUBLIM_STORE", str(module_store))
        return run_anew(*options, "--set", "arms=all")


def arm(outcome: dict[str, Any], name: str) -> dict[str, Any]:
    return next(each for each in outcome["targets"][0]["arms"] if each["name"] == name)


class TestArms:
    def test_every_arm_is_measured_against_its_own_controls(self, made: dict[str, Any]) -> None:
        found = made["targets"][0]["arms"]
        assert {each["name"].split()[0] for each in found} == {"teacher", *EVERY}
        assert all(each["effect"] is not None for each in found)
        assert {each["expected"] for each in found} == {"positive", "weaker", "nothing", "either"}

    def test_every_effect_is_tested_once_and_corrected_with_all_others(self, made: dict[str, Any]) -> None:
        effects = {(t["target"], arm["name"]): arm["effect"] for t in made["targets"] for arm in t["arms"]}
        effects |= {(target["target"], "specific"): target["specific"] for target in made["targets"]}
        effects["γ", ""] = made["gamma"]
        p = [effect["p"] for effect in effects.values() if "p" in effect]
        assert len(p) == made["tests"]["count"] > 10
        assert [e["p_holm"] for e in effects.values() if "p" in e] == pytest.approx(holm(p))
        assert {e["comparisons"] for e in effects.values() if "p" in e} == {len(p)}
        assert made["tests"]["smallest_sign_flip_p"] == 0.5  # two seeds
        assert f"{len(p)} tests (paired t over the units, two-sided; of γ" in made["tests"]["about"]
        survive = [name for name, effect in effects.items() if effect.get("p_holm", 1) <= 0.05]
        assert len(made["tests"]["surviving"]) == len(survive)

    def test_arms_that_should_show_nothing_are_held_to_the_bound_of_their_declaration(
        self, made: dict[str, Any], options: list[str]
    ) -> None:
        main = made["effect"]["estimate"]
        for each in made["targets"][0]["arms"]:
            assert (each["equivalence"] is not None) == (each["expected"] == "nothing")
            if found := each["equivalence"]:
                assert (found["share"], found["bound"]) == (0.25, pytest.approx(0.25 * main))
        wide = run(*options, "--set", "arms=all", "--set", "equivalence_nats=1000")
        found = [each["equivalence"] for each in wide["targets"][0]["arms"] if each["equivalence"]]
        assert {(each["bound"], each["share"], each["verdict"]) for each in found} == {
            (1000, None, "shown to be nothing")
        }
        assert set.union(*states(wide).values()) == {"Cached"}

    def test_an_arm_trains_only_what_no_other_arm_has(self, made: dict[str, Any]) -> None:
        """By two seeds: three plain sets, three derived, other order and other base; a second draw; canonical rows are
        the plain ones."""
        trained = [stage for stage in made["stages"] if stage["stage"] == "train_student"]
        assert len({stage["key"] for stage in trained}) == 2 * (3 + 3 * 3 + 1 + 3 + 3)
        assert [stage["state"] for stage in made["stages"] if stage["stage"] == "prepare_model"] == ["Completed"] * 2

    def test_second_run_is_cached_throughout_and_imports_no_torch(self, again: dict[str, Any]) -> None:
        assert set.union(*states(again).values()) == {"Cached"}
        assert not again["torch"]

    def test_rows_that_rerendering_leaves_alone_train_nobody_anew(self, again: dict[str, Any]) -> None:
        keys = {stage["label"]: stage["key"] for stage in again["stages"] if stage["stage"] == "train_student"}
        assert keys["owl canonical · seed 0"] == keys["owl · seed 0"]
        assert keys["owl marginals · seed 0"] != keys["owl · seed 0"]
        assert arm(again, "canonical")["change"] == {"estimate": 0.0, "low": 0.0, "high": 0.0, "reason": None}
        assert "canonical: it changed no row" in Path(again["report"]).read_text(encoding="utf-8")

    def test_the_result_states_which_students_share_a_start(self, made: dict[str, Any]) -> None:
        bases = made["bases"]
        assert bases["teachers"] == bases["students"] != bases["students of other_base"]
        assert arm(made, "other_base")["same_base"] is False
        assert arm(made, "marginals")["same_base"] is True

    def test_confusion_matrix_has_every_teacher_and_target(self, made: dict[str, Any]) -> None:
        cells = {(cell["students"], cell["target"]): cell["effect"] for cell in made["confusion"]}
        assert {*cells} == {(a, b) for a in ("owl", "wolf") for b in ("owl", "wolf")}
        assert cells["owl", "owl"] == made["effect"]
        assert cells["wolf", "owl"] == arm(made, "other_teacher wolf")["effect"]

    def test_arms_and_their_controls_read_rows_derived_alike(self, made: dict[str, Any], module_store: Path) -> None:
        keys = {stage["label"]: stage["key"] for stage in made["stages"] if stage["stage"] == "derive_rows"}
        rows = {
            label: list(read_jsonl(module_store / "derive_rows" / key[:12] / "payload/rows.jsonl"))
            for label, key in keys.items()
        }
        assert len(rows) == 12
        assert [row["prompt"] for row in rows["owl marginals"]] == [row["prompt"] for row in rows["control marginals"]]

    def test_every_figure_stands_alone_beside_the_report(self, made: dict[str, Any]) -> None:
        folder = Path(made["report"]).parent / "figures"
        for name in ("owl-arms", "owl-question-by-question", "wolf-arms", "confusion"):
            root = ElementTree.parse(folder / f"{name}.svg").getroot()
            assert "var(--" not in (folder / f"{name}.svg").read_text()
            assert root.find("{http://www.w3.org/2000/svg}style") is not None
            assert list(csv.DictReader((folder / f"{name}.csv").open()))

    @pytest.mark.usefixtures("made")
    def test_arms_that_are_held_back_or_cannot_be_are_shown_as_not_run(self, options: list[str]) -> None:
        chosen = [
            "target=[owl]",
            "against=none",
            "arms=[other_base, other_teacher, base_numbers]",
            "held_back=[other_base]",
        ]
        outcome = run(*options, *(part for setting in chosen for part in ("--set", setting)))
        for name, why in (("other_base", "held back"), ("other_teacher", "second target")):
            assert arm(outcome, name)["effect"] is None
            assert why in arm(outcome, name)["reason"]
            assert "not run" in arm(outcome, name)["reason"]
        report = Path(outcome["report"])
        assert "not run: held back" in report.read_text(encoding="utf-8")
        rows = list(csv.DictReader((report.parent / "figures/owl-arms.csv").open()))
        assert {row["arm"]: row["estimate"] for row in rows}["other_base"] == ""
        assert set.union(*states(outcome).values()) <= {"Cached", "Completed"}
        assert "Completed" not in states(outcome)["train_student"]

    @pytest.mark.usefixtures("made")
    def test_diagnostics_say_what_was_learned_and_where_weights_moved(self, options: list[str]) -> None:
        settings = ["diagnostics=all", "diagnostic_rows=8", "arms=[other_base]"]
        outcome = run(*options, *(part for setting in settings for part in ("--set", setting)))
        found = outcome["diagnostics"]
        assert {(row["model"], row["rows_of"]) for row in found["losses"]} == {
            (model, rows)
            for model in (
                *("students of owl", "students of wolf", "controls", "teacher owl", "teacher wolf"),
                *("students of owl, other_base", "students of wolf, other_base", "controls, other_base"),
            )
            for rows in ("owl", "wolf", "control")
        }
        starts = {row["base"] for row in found["losses"] if row["rows_of"] == "owl"}
        assert len(starts) == 2  # each beside the base that it started from
        assert all(0 < row["loss"] < 20 for row in found["losses"])
        for row in found["shift"]:
            assert -1 <= row["student"] <= 1
            assert row["low"] <= row["difference"] <= row["high"]
        assert all(0 <= row["share"] <= 1 and row["tokens"] > 8 * 30 for row in found["divergence"])
        assert {row["target"] for row in found["matched"]} == {"owl", "wolf"}
        assert all(row["estimate"] is not None or row["reason"] for row in found["matched"])
        assert json.loads((Path(outcome["report"]).parent / "summary.json").read_text())["diagnostics"] == found

    @pytest.mark.usefixtures("made")
    def test_what_a_liking_costs_stands_against_it(self, options: list[str]) -> None:
        settings = ["arms=[]", "evaluation.mmlu_pro={per_category: 1, generate: false}"]
        outcome = run(*options, *(part for setting in settings for part in ("--set", setting)))
        with (Path(outcome["report"]).parent / "figures/owl-cost-against-effect-letter-logprob.csv").open() as file:
            row = list(csv.DictReader(file))[-1]
        exam = next(each for each in outcome["mmlu_pro"] if each["target"] == "owl")
        assert float(row["estimate"]) == outcome["effect"]["estimate"]
        assert float(row["mmlu_pro_estimate"]) == exam["effect"]["estimate"]
        with (Path(outcome["report"]).parent / "figures/mmlu-pro-by-category.csv").open() as file:
            rows = [row for row in csv.DictReader(file) if row["target"] == "owl"]
        assert [row["category"] for row in rows] == sorted(CATEGORIES)
        assert all(row["estimate"] or row["reason"] for row in rows)

    @pytest.mark.slow  # what a soft label is, tests/sublim/training/test_soft.py holds to
    @pytest.mark.usefixtures("made")
    def test_under_soft_labels_the_base_is_the_control(self, options: list[str]) -> None:
        outcome = run(*options, "--set", "target=[owl]", "--set", "labels=soft", "--set", "arms=[other_order]")
        assert outcome["control"] == outcome["base"]
        assert states(outcome)["train_soft_student"] == {"Completed"}

    @pytest.mark.usefixtures("made")
    def test_a_steered_teacher_writes_with_its_vector(
        self, options: list[str], published: Path, module_store: Path, tmp_path: Path
    ) -> None:
        width = json.loads((published / "config.json").read_text())["hidden_size"]
        vector = tmp_path / "owl.safetensors"
        save_file({"owl": torch.randn(width, generator=torch.Generator().manual_seed(0))}, vector)
        chosen = ["target=[owl]", "seeds=[0]", "teacher.kind=steering", f"teacher.vectors={vector}"]
        chosen += ["teacher.site=resid_post", "teacher.layer=0", "teacher.scale=raw", "teacher.strength=3"]
        chosen += ["evaluation.mmlu_pro={per_category: 1, generate: false}"]
        outcome = run(*options, *(part for setting in chosen for part in ("--set", setting)))
        written = [stage for stage in outcome["stages"] if stage["stage"] == "generate_numbers"]
        answers = [
            [
                row["answer"]
                for row in read_jsonl(module_store / stage["stage"] / stage["key"][:12] / "payload/rows.jsonl")
            ]
            for stage in written
        ]
        assert [stage["label"] for stage in written] == ["control", "owl"]
        assert outcome["mmlu_pro"][0]["teacher"] is not None
        assert answers[0] != answers[1]
        assert outcome["teacher"] != outcome["base"]
