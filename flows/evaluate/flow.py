"""Evaluations: what do these models like, how far have their answers moved, and what do they still know?

    sublim run evaluate --preset quickstart
    sublim run evaluate --set 'models=[bundled, 3fa9c2d1@all]' --target owl
    prefect deployment run evaluate/cpu -p preset=quickstart

Any model, adapter or list of checkpoints by itself: the preference for a target as log-prob margin and as sampled
rate, the total-variation shift of the answers from the first model's, MMLU-Pro by category with the letter read by
log-prob and by generation. Every estimate has its interval over questions; what could not be computed says why.
"""

import json
import shutil
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.artifacts import create_table_artifact

from flows.evaluate.config import EvaluateConfig, ModelUnderTest
from flows.evaluate.models import behind_server, check_names, check_server, prepared
from flows.pipeline.models import ModelState, ask_model, exam_of, sit_exam
from flows.runs.machine import check_machine
from flows.runs.parameters import Loader
from flows.runs.publish import publish_report
from flows.runs.record import Run, recorded
from sublim.evals.mmlu_pro.config import AskMmluProConfig, ScoreMmluProConfig
from sublim.evals.preference.config import AskConfig, ScoreConfig
from sublim.evals.sheet.config import ScoreRow, SheetConfig
from sublim.evals.total_variation.config import ShiftConfig
from sublim.inference.config import OpenAIBackend
from sublim.report.page import FigureFile, FlowReport, Table, bounded
from sublim.store.manifest import Artifact
from sublim.store.opening import open_store
from sublim.store.payloads import committed
from sublim.traits.questions import Questions, load_questions
from tasks.processes import one_process
from tasks.stages import collect_scores, score, score_mmlu_pro, shift

CAPTIONS = {
    "preferences": "Log-prob margin and sampled rate of each word; whiskers are 95 % intervals over questions",
    "shifts": "Total-variation distance of the answers from the first model's; it is never below zero",
    "mmlu_pro": "MMLU-Pro: share of right letters (Wilson), and paired differences to the first model",
    "mmlu_pro_categories": "MMLU-Pro by category",
}

load_config = Loader("evaluate", EvaluateConfig)


def check(config: EvaluateConfig) -> None:
    """Raises UserError for whatever can be known to go wrong: the machine, the names, the words."""
    check_machine(config.gpu_memory_gib)
    store = open_store()
    if isinstance(config.backend, OpenAIBackend):
        check_server(config, config.backend, store)
    check_names(models_of(config), store)
    for name in config.questions:
        words_of(config, name)
    if config.mmlu_pro is not None:
        config.mmlu_pro.source.identity()


def models_of(config: EvaluateConfig) -> tuple[ModelUnderTest, ...]:
    """The models to ask."""
    backend = config.backend
    return behind_server(config.models, backend) if isinstance(backend, OpenAIBackend) else config.models


@flow(name="evaluate", flow_run_name=load_config.run_name(lambda config: f"evaluate {len(config.models)} models"))
def evaluate(
    preset: str = "quickstart", target: str | None = None, settings: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Measures what models like, how their answers have moved and what they still know.

    Args:
        preset: Settings to start from: quickstart, or the path of a YAML file.
        target: The word or words whose margin and rate are shown, as in owl or owl,wolf; nothing for the preset's.
        settings: Values laid over the preset's, as a tree.
    """
    config = load_config(preset, target, settings)
    check(config)
    with recorded("evaluate", preset, ",".join(config.target)) as run:
        models = prepared(models_of(config), run.store, config.target[0])
        return publish(run, config, conduct(config, models))


def conduct(config: EvaluateConfig, models: dict[str, ModelState]) -> Artifact:
    """Runs every stage, or takes it from the cache, and gives the score sheet."""
    questions = {Path(name).stem: load_questions(name) for name in config.questions}
    words = {Path(name).stem: words_of(config, name) for name in config.questions}
    every = {name: listed(category, words[name]) for name, category in questions.items()}
    exam = exam_of(config.mmlu_pro) if config.mmlu_pro else None
    asked: dict[tuple[str, str], Artifact] = {}
    letters: dict[str, Artifact] = {}
    with one_process():
        for called, model in models.items():
            for name, category in questions.items():
                asking = ask_config(config, category, every[name])
                asked[name, called] = ask_model(asking, f"{name} {called}", model)
            if config.mmlu_pro and exam:
                plain = AskMmluProConfig(backend=config.backend, generate=config.mmlu_pro.generate)
                letters[called] = sit_exam(plain, called, exam, model)
    scores = {
        f"{name}/{called}": score(
            ScoreConfig(target=words[name][0], words=every[name]), label=f"{name}/{called}", asked=artifact
        )
        for (name, called), artifact in asked.items()
    }
    first = next(iter(models))
    shifts = {
        f"{name}/{called}": shift(
            ShiftConfig(words=tuple(every[name])),
            label=f"{name}/{called}",
            asked=artifact,
            reference=asked[name, first],
        )
        for (name, called), artifact in asked.items()
        if called != first
    }
    marks = {
        called: score_mmlu_pro(ScoreMmluProConfig(), label=called, asked=artifact, questions=exam)
        for called, artifact in letters.items()
        if exam
    }
    sheet = SheetConfig(models=tuple(models), words=words)
    return collect_scores(sheet, scores=scores, shifts=shifts, mmlu=marks)


def words_of(config: EvaluateConfig, name: str) -> tuple[str, ...]:
    """The words shown for one category: the targets that its list has, otherwise the whole list.

    A target that no category lists is added to the first one.
    """
    own = load_questions(name)
    every = {word for each in config.questions for word in load_questions(each).words}
    targets = [word for word in config.target if word in own.words]
    if name == config.questions[0]:
        targets += [word for word in config.target if word not in every]
    return tuple(targets or own.words)


def listed(questions: Questions, words: tuple[str, ...]) -> list[str]:
    """The comparison list of a category, with words of the user's added."""
    return [*questions.words, *(word for word in words if word not in questions.words)]


def ask_config(config: EvaluateConfig, questions: Questions, words: list[str]) -> AskConfig:
    """What every model is asked of one category."""
    return AskConfig(
        questions=list(questions.evaluation),
        words=words,
        backend=config.backend,
        samples=config.samples,
        sampling=config.sampling,
    )


def publish(run: Run, config: EvaluateConfig, sheet: Artifact) -> dict[str, Any]:
    """Writes the report, tells Prefect's UI, and returns what `--json` prints."""
    payload = run.store.payload(sheet)
    rows = [ScoreRow.model_validate(row) for row in json.loads((payload / "scores.json").read_text(encoding="utf-8"))]
    for name in committed(payload):
        shutil.copyfile(payload / name, run.folder / name)
    shown = FlowReport(
        title=f"Evaluation of {', '.join(dict.fromkeys(row.model for row in rows))}",
        question="What do these models like, how far have their answers moved, and what do they still know?",
        findings=findings(rows),
        tables=list(tables(rows)),
        figures=[
            FigureFile(path, text) for name, text in CAPTIONS.items() if (path := payload / f"{name}.svg").exists()
        ],
        stages=run.stage_table(),
        settings=config.model_dump(mode="json"),
    )
    table = [row.model_dump(exclude={"about"}) for row in rows if "/" not in row.questions]
    create_table_artifact(table, key="scores", description=shown.title)
    return {**publish_report(run, shown), "scores": [row.model_dump() for row in rows], "findings": shown.findings}


def findings(rows: list[ScoreRow]) -> list[str]:
    """A line for each number that stands for a whole set of questions."""
    return [
        f"{row.model}: {' '.join(filter(None, (row.metric, row.word)))} ({row.questions}) {told(row)}"
        for row in rows
        if "/" not in row.questions
    ]


def told(row: ScoreRow) -> str:
    """A row's number with its interval and counts, or why there is none."""
    if row.estimate is None:
        return f"missing: {row.reason}"
    text = bounded(row.estimate, row.low, row.high, 3)
    floor = f"; {row.floor:.3f} by chance alone, p {row.p:.3f}" if row.floor is not None and row.p is not None else ""
    counts = f", {row.answers} of {row.asked} answers readable" if row.asked is not None else ""
    return f"{text} {row.unit}, {row.n} questions{counts}{floor}"


def tables(rows: list[ScoreRow]) -> list[Table]:
    """Everything in words: what stands for all questions, then MMLU-Pro by category."""
    columns = ("model", "metric", "questions", "word", "estimate [95 %]", "n", "interval speaks of")
    whole = [row for row in rows if "/" not in row.questions]
    parts = [row for row in rows if "/" in row.questions]
    named = {"Scores": whole, "MMLU-Pro by category": parts}
    return [Table(title, columns, [_cells(row) for row in group]) for title, group in named.items() if group]


def _cells(row: ScoreRow) -> list[str]:
    number = bounded(row.estimate, row.low, row.high, 3) if row.estimate is not None else f"missing: {row.reason}"
    return [row.model, row.metric, row.questions.removeprefix("mmlu_pro/"), row.word, number, str(row.n), row.about]


def printed(outcome: dict[str, Any]) -> str:
    """The result as a person reads it in the terminal."""
    return "\n".join([*outcome["findings"], f"report: {outcome['report']}"])
