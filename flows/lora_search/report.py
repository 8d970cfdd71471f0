"""The results of a search: a report with Optuna's figures, a preset with the best parameters, artifacts in Prefect."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from prefect.artifacts import create_table_artifact

from flows.lora_search.config import LoraSearchConfig
from flows.pipeline.config import PipelineConfig
from flows.runs.publish import publish_figures, publish_findings, publish_link
from flows.runs.record import Run
from flows.runs.settings import build, load_preset
from sublim.files.whole_files import write_whole
from sublim.report.page import FigureFile, FlowReport, Table, bounded, write_flow_report
from sublim.search.config import SIGN, UNITS, DrawSearchConfig, Objective, StudyConfig, TrialRecord
from sublim.search.opening import flat
from sublim.search.space import params_of, student_with
from sublim.search.study import Measured, shown
from sublim.stats.intervals import paired_t
from sublim.store.payloads import matching
from tasks.stages import draw_search

NOT_DRAWN = "not_drawn.json"
CAPTIONS = {
    "history": "All trials in their order, and the best value so far",
    "importance": "How much of the objective's spread each parameter explains (functional ANOVA on a random forest)",
    "parallel": "Parallel coordinates: one line for each trial, with its parameters and its value",
    "front": "All trials by their objectives; no trial is better in all objectives than one on the Pareto front",
    "rungs": "Held-out loss of the trials at each rung (updates); trials whose lines end early were stopped",
}


class Difference(NamedTuple):
    """Best minus default in one objective, with a 95 % interval over fresh blocks."""

    objective: Objective
    best: list[float]
    """Value of the best trial's parameters on every block."""
    default: list[float]
    """Value of the default on every block."""
    estimate: float
    low: float
    high: float

    @property
    def tie(self) -> bool:
        """Whether the interval contains zero."""
        return self.low <= 0 <= self.high

    def sentence(self) -> str:
        """The comparison in words. If the interval contains zero, it says that neither is better."""
        unit, digits = UNITS[self.objective], 4 if self.objective == "loss" else 3
        interval = bounded(self.estimate, self.low, self.high, digits)
        text = f"{self.objective}, best - default on {len(self.best)} fresh blocks: {interval} {unit} (95 %, paired)"
        if self.best == self.default:
            return f"{text}: the best trial is the default itself"
        if self.tie:
            return f"{text}: the interval contains zero, so neither is better"
        better = self.estimate * SIGN[self.objective] > 0
        return f"{text}: the best trial's parameters are {'better' if better else 'worse'} than the default"


class Found(NamedTuple):
    """Everything that a search has found, for the report."""

    study: StudyConfig
    trials: list[TrialRecord]
    best: TrialRecord | None
    finished: bool
    default: Measured | None = None
    differences: list[Difference] | None = None
    missing: str | None = None
    """Reason why the default or the differences could not be measured."""


def confirmed(config: LoraSearchConfig, pairs: Sequence[tuple[Measured, Measured]]) -> list[Difference]:
    """Best minus default in each objective; the blocks are the units."""
    found: list[Difference] = []
    for place, name in enumerate(config.objectives):
        best, default = ([measured.values[place] for measured in side] for side in zip(*pairs, strict=True))
        estimate, low, high, *_ = paired_t([a - b for a, b in zip(best, default, strict=True)])
        found.append(Difference(name, best, default, estimate, low, high))
    return found


def publish(run: Run, config: LoraSearchConfig, found: Found) -> dict[str, Any]:
    """Writes the report and the preset, adds artifacts to Prefect's UI, and returns what `--json` prints."""
    # Without what the figures do not depend on, so that they are drawn again only if they change.
    trials = tuple(record.model_copy(update={"notes": {}, "retried": 0, "reason": None}) for record in found.trials)
    drawing = DrawSearchConfig(objectives=config.objectives, space=found.study.space, trials=trials)
    figures = run.store.payload(draw_search(drawing, label=found.study.name))
    preset = write_preset(run.folder / "best.yaml", config, found) if found.best else None
    said = list(findings(config, found, preset))
    differences = [difference(each) for each in found.differences or []]
    report = FlowReport(
        title=f"Parameter search, {config.target[0]}: {config.about or run.preset}",
        question="Which training parameters make a student learn most from its teacher's numbers?",
        findings=said,
        tables=[*tables(config, found), *not_drawn(figures)],
        figures=[FigureFile(path, caption(path.stem)) for path in matching(figures, "*.svg")],
        stages=run.stage_table(),
        settings=config.model_dump(mode="json"),
    )
    run.report = write_flow_report(run.folder, report)
    tell_prefect(run, config, found, said, figures)
    return {
        "flow": run.flow,
        "preset": run.preset,
        "target": config.target[0],
        "study": found.study.name,
        "finished": found.finished,
        "best": found.best and described(config, found, found.best),
        "best_preset": preset and str(preset),
        "trials": [record.model_dump(mode="json") for record in found.trials],
        "default": {
            "params": params_of(config.student, found.study.space),
            "values": found.default and named(config, found.default.values),
        },
        "difference": differences[0] if differences else None,
        "differences": differences,
        "findings": said,
        "stages": run.stage_table(),
        "report": str(run.report),
        "run": run.name,
        "seconds": round(run.seconds, 3),
    }


def described(config: LoraSearchConfig, found: Found, record: TrialRecord) -> dict[str, Any]:
    """A trial with its parameters, the student's fields that they set, and its values."""
    student = student_with(config.student, found.study.space, record.params).model_dump(mode="json")
    fields = {name: value for name, value in flat(student) if name in found.study.space}
    values = named(config, record.values or ())
    return {"trial": record.number, "params": record.params, "student": fields, "values": values}


def named(config: LoraSearchConfig, values: Sequence[float]) -> dict[Objective, float]:
    """The values of a trial by the names of the objectives."""
    return dict(zip(config.objectives, values, strict=True))


def difference(each: Difference) -> dict[str, Any]:
    """The comparison as `--json` prints it."""
    return {**each._asdict(), "tie": each.tie, "blocks": len(each.best), "sentence": each.sentence()}


def write_preset(path: Path, config: LoraSearchConfig, found: Found) -> Path:
    """The pipeline's settings with the best trial's student, as `sublim run pipeline --preset` takes them."""
    assert found.best is not None
    student = student_with(config.student, found.study.space, found.best.params)
    about = f"{config.target[0]}: the parameters of trial {found.best.number} of the search {found.study.name}"
    chosen = config.pipeline().model_copy(update={"student": student, "about": about})
    write_whole(path, yaml.safe_dump(chosen.model_dump(mode="json"), sort_keys=False, allow_unicode=True))
    build(PipelineConfig, load_preset("pipeline", str(path)))
    return path


def findings(config: LoraSearchConfig, found: Found, preset: Path | None) -> Iterator[str]:
    """The findings of the report, in sentences."""
    states = [record.state for record in found.trials]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states)) or "none yet"
    yield f"{len(states)} of {config.trials} trials: {counts}"
    if not found.finished:
        yield "The study is not finished: the same command continues it"
    if found.finished and found.best is None:
        reasons = dict.fromkeys(record.reason for record in found.trials if record.reason)
        yield f"No trial has a value: {'; '.join(reasons)}. Search other bounds, which makes another study"
    if found.best is not None:
        best = described(config, found, found.best)
        values = with_units(best["values"])
        fields = ", ".join(f"{name} {shown(value)}" for name, value in best["student"].items())
        several = " (best in the first objective on the front)" if len(config.objectives) > 1 else ""
        yield f"Best{several}: trial {found.best.number}, {values}, with {fields}"
    if found.default is not None:
        yield f"Default, on the search's own block: {with_units(named(config, found.default.values))}"
    for each in found.differences or []:
        yield each.sentence()
    if found.missing is not None:
        yield f"Not measured: {found.missing}"
    if found.best is not None and found.differences is None:
        yield "Not confirmed on fresh blocks: the best of many trials looks better than it is"
    if preset is not None:
        yield f"sublim run pipeline --preset {preset}"


def with_units(values: Mapping[Objective, float]) -> str:
    """Values by objective as text."""
    return ", ".join(f"{name} {value:.4g} {UNITS[name]}" for name, value in values.items())


def tables(config: LoraSearchConfig, found: Found) -> Iterator[Table]:
    """The tables of all trials and of the fresh blocks behind the interval."""
    names = list(dict.fromkeys(name for record in found.trials for name in record.params))
    rows = [
        [str(record.number), record.state]
        + [shown(record.params.get(name)) for name in names]
        + [f"{value:.4f}" for value in record.values or ()]
        + ["-"] * (0 if record.values else len(config.objectives))
        + [record.reason or ("made again" if record.retried else "")]
        for record in found.trials
    ]
    yield Table("Trials", ["trial", "state", *names, *config.objectives, ""], rows)
    for each in found.differences or []:
        assert config.confirm is not None
        rows = [
            [str(block), f"{best:.4f}", f"{default:.4f}", f"{best - default:+.4f}"]
            for block, best, default in zip(config.confirm.blocks, each.best, each.default, strict=True)
        ]
        yield Table(f"Fresh blocks, {each.objective}", ["block", "best", "default", "difference"], rows)


def not_drawn(figures: Path) -> Iterator[Table]:
    """A table of the figures that could not be drawn, if there are any."""
    missing = json.loads((figures / NOT_DRAWN).read_text(encoding="utf-8"))
    if missing:
        yield Table("Figures that could not be drawn", ["figure", "reason"], [*map(list, missing.items())])


def caption(name: str) -> str:
    """The caption of a figure, with its objective if the name has one."""
    kind, _, objective = name.partition("-")
    return f"{CAPTIONS[kind]} ({objective})" if objective else CAPTIONS[kind]


def tell_prefect(run: Run, config: LoraSearchConfig, found: Found, said: list[str], figures: Path) -> None:
    """Adds the summary, the trials, the figures and a link to the report to the flow run in Prefect's UI."""
    publish_findings(said, run.flow)
    create_table_artifact(
        [
            {"trial": record.number, "state": record.state, **record.params}
            | dict(zip(config.objectives, record.values or [None] * len(config.objectives), strict=True))
            for record in found.trials
        ],
        key="trials",
        description=found.study.name,
    )
    publish_figures(FigureFile(path, caption(path.stem)) for path in matching(figures, "*.png"))
    publish_link(run)


def printed(outcome: dict[str, Any]) -> str:
    """The result as text for the terminal."""
    return "\n".join([*outcome["findings"], f"report: {outcome['report']}"])
