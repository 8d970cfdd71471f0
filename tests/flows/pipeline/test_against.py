"""Comparison targets: chosen by rule, made like the target, and without any influence on what was there before."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flows.pipeline.config import PipelineConfig
from flows.pipeline.flow import printed
from flows.pipeline.plan import ask_config, table_score_config
from flows.probe.config import ProbeFlowConfig
from flows.runs.settings import build, load_preset, merge
from flows.sweep.cells import cells_of
from flows.sweep.config import SweepConfig
from sublim.core.digest import digest
from sublim.core.errors import UserError
from tests.flows.pipeline.test_pipeline import run, states
from tests.sublim.evals.specificity.plain import recomputed


def config(**settings: Any) -> PipelineConfig:
    return build(PipelineConfig, merge(load_preset("pipeline", "quickstart"), settings))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store")


class TestRule:
    def test_one_target_is_compared_with_the_listed_word_that_follows_it(self) -> None:
        assert config(target="owl").made == ("owl", "panda")
        assert config(target="panda").compared == ("wolf",)  # the list is a circle
        assert config(target="otter").compared == ("wolf",)  # not listed: its first word
        assert config(evaluation={"words": ["owl", "sea lion", "cat"]}).compared == ("cat",)

    def test_no_rule_applies_where_a_comparison_would_not_be_alike(self) -> None:
        assert config(target="owl,wolf").compared == ()
        assert config(second_draw=True).compared == ()
        assert config(teacher={"kind": "steering", "vectors": "abcdef12"}).compared == ()

    def test_it_can_be_named_or_switched_off(self) -> None:
        assert config(against="fox, dog").compared == ("fox", "dog")
        assert config(against="none").compared == config(against=[]).compared == ()
        for settings, says in (
            ({"against": "owl"}, "names a target"),
            ({"against": "fox,fox"}, "named twice"),
            ({"against": "fox", "second_draw": True}, "second_draw"),
        ):
            with pytest.raises(UserError, match=says):
                config(**settings)

    def test_left_unset_it_is_in_no_digest_and_asks_nothing_more(self) -> None:
        assert "against" not in config().identity()
        assert digest(ask_config(config())) == digest(ask_config(config(against="none")))

    def test_targets_outside_the_list_share_one_longer_list(self) -> None:
        chosen = config(target="owl,otter")
        words = {tuple(table_score_config(chosen, target).words) for target in chosen.made}
        assert len(words) == 1
        assert "otter" in next(iter(words))

    def test_flows_on_top_have_none_unless_they_name_one(self) -> None:
        probe = build(ProbeFlowConfig, load_preset("probe", "quickstart"))
        assert probe.pipeline.compared == ()
        named = build(ProbeFlowConfig, merge(load_preset("probe", "quickstart"), {"study": {"against": "fox"}}))
        assert named.pipeline.compared == ("fox",)

    def test_a_sweeps_cells_run_without_one_and_their_plans_keep_their_digests(self) -> None:
        (cell,) = cells_of(SweepConfig(preset="quickstart"))
        assert cell.ran.compared == ()
        assert cell.settings["against"] == []  # which a pool's machine reads
        assert "against" not in cell.config.identity()
        (named,) = cells_of(SweepConfig(preset="quickstart", settings={"against": ["fox"]}))
        assert named.ran.compared == ("fox",)
        assert named.settings["against"] == ["fox"]


@pytest.mark.usefixtures("prefect_server")
class TestRuns:
    @pytest.fixture(autouse=True)
    def shared(self, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SUBLIM_STORE", str(store))

    def test_a_comparison_target_adds_stages_and_changes_none(self, small: list[str], store: Path) -> None:
        alone = run(*small, "--set", "against=none")
        assert alone["specific"] is alone["gamma"] is None
        assert alone["total"]["estimate"] == alone["effect"]["estimate"]
        assert "compare_targets" not in states(alone)
        outcome = run(*small)
        # Carriers are examined anew: now the comparison target is one of the words that are looked for.
        before = {stage["key"] for stage in alone["stages"] if stage["stage"] != "examine_carrier"}
        now = {stage["key"]: stage for stage in outcome["stages"]}
        assert before <= now.keys()
        assert len(now) == len(outcome["stages"])  # no model is scored twice
        assert {now[key]["state"] for key in before} == {"Cached"}
        added = [stage for key, stage in now.items() if key not in before]
        assert {stage["state"] for stage in added} == {"Completed"}
        assert [stage["label"] for stage in added if stage["stage"] == "train_student"] == [
            "panda · seed 0",
            "panda · seed 1",
        ]
        assert [each["target"] for each in outcome["targets"]] == ["owl"]
        # There are more tests, and so another correction.
        family = {"p_holm": outcome["effect"]["p_holm"], "comparisons": outcome["tests"]["count"]}
        assert outcome["effect"] == {**alone["effect"], **family}
        assert outcome["tests"]["count"] > alone["tests"]["count"]
        again = states(run(*small))
        assert set.union(*again.values()) == {"Cached"}
        self._specific_is_what_the_scores_say(outcome, store)
        self._shown(outcome)

    def _specific_is_what_the_scores_say(self, outcome: dict[str, Any], store: Path) -> None:
        """Computed again, without this code, from the files of the stages with these labels."""
        folders = {
            stage["label"]: store / "score" / stage["key"][:12] / "payload"
            for stage in outcome["stages"]
            if stage["stage"] == "score"
        }
        students = {word: [folders[f"{word}: {word} · seed {i}"] for i in (0, 1)] for word in ("owl", "panda")}
        again = recomputed(students, [folders[f"owl: control · seed {i}"] for i in (0, 1)], [0, 0], 10_000, 0)
        for part in ("total", "generic", "specific"):
            estimate, low, high, *_ = again[f"owl {part}"]
            found = outcome[part]
            assert (found["estimate"], found["low"], found["high"]) == pytest.approx((estimate, low, high), abs=1e-9)
        assert outcome["gamma"]["estimate"] == pytest.approx(again["gamma"][0], abs=1e-9)
        assert outcome["total"]["estimate"] == pytest.approx(outcome["effect"]["estimate"], abs=1e-9)

    def _shown(self, outcome: dict[str, Any]) -> None:
        lines = printed(outcome).splitlines()
        first = lines.index("owl: specific to owl, against students of a panda teacher:")
        assert lines[first + 1].startswith(f"  specific {outcome['specific']['estimate']:+.2f} nats, ")
        assert "γ over" not in printed(outcome)
        assert outcome["placebo_rank"]["total"]["of"] == 12
        assert outcome["placebo_rank"]["specific"]["of"] == 11  # panda has no teacher that prefers another word
        (tables,) = outcome["specificity"]
        assert tables["against"] == ["panda"]
        moved = tables["metrics"]["margin"]["moved"]
        assert [*moved] == ["owl", "panda"]
        assert moved["owl"]["owl"] == pytest.approx(outcome["total"]["estimate"])
        assert {len(row) for row in moved.values()} == {12}
        assert np.isfinite([value for row in moved.values() for value in row.values()]).all()
        assert tables["metrics"]["margin"]["teachers"]["panda"]["panda"] is not None
        page = Path(outcome["report"]).read_text(encoding="utf-8")
        lead = page.index("Specific to owl, against students of a panda teacher")
        assert lead < page.index("The effect on <em>owl</em>")
        assert "One teacher for each target" in page
        assert json.loads((Path(outcome["report"]).parent / "summary.json").read_text())["gamma"]["p_smallest"] == 0.5

    def test_two_targets_have_gamma_with_its_p_at_every_checkpoint(self, small: list[str]) -> None:
        settings = ["blocks=[0, 1]", "seeds=[0]", "evaluation.updates=[1, 3]"]
        options = [part for setting in settings for part in ("--set", setting)]
        outcome = run(*small, "--target", "owl,otter", *options)
        gamma = outcome["gamma"]
        assert (gamma["units"], gamma["unit"], gamma["updates"], gamma["arrangements"]) == (2, "block", 3, 4)
        assert gamma["exact"]
        assert 0.25 <= gamma["p"] <= 1
        assert [each["updates"] for each in outcome["specificity"]] == [1, 3]
        for target in outcome["targets"]:
            assert [point["updates"] for point in target["specific_dose"]] == [1, 3]
            assert target["gamma"] == gamma
        estimates = [target["specific"]["estimate"] for target in outcome["targets"]]
        assert gamma["estimate"] == pytest.approx(np.mean(estimates))
        assert "γ over owl, otter: " in printed(outcome)
        assert "permutation p" in printed(outcome)
        assert "γ over owl and otter" in Path(outcome["report"]).read_text(encoding="utf-8")
