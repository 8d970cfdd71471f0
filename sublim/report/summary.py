"""The result of a run as JSON, as rows of a table and as Markdown."""

from typing import Any

from sublim.evals.effect_config import Effect
from sublim.evals.preference.config import ALL, MetricComparison
from sublim.report.carrier import carrier_json, carrier_warnings, kind_of
from sublim.report.shown import ArmShown, RunReport, TargetShown
from sublim.report.specific import lead, lead_more, specific_json, tables_json, target_lines
from sublim.report.tested import p_told
from sublim.report.unread import unread_notes
from sublim.report.wording import (
    EFFECT_UNIT,
    NAMES,
    few_teachers,
    headline,
    interval,
    level,
    power_note,
    signed,
    teachers,
    verdict,
)

SINGLES = {"per_pair", "per_unit", "per_question"}
"""An effect's values of single pairs, units and questions."""


def effect_json(effect: Effect | None) -> dict[str, Any] | None:
    """An effect as `--json` prints it, without the values of single pairs, units and questions."""
    return None if effect is None else effect.model_dump(exclude=SINGLES)


def target_json(shown: TargetShown) -> dict[str, Any]:
    """One target as `--json` prints it. The margin's numbers are at the top level, the rate's under `rate`, those of
    the answers that cannot be read under `unreadable`, by reason."""
    comparison = shown.comparison
    margin = comparison.metrics["margin"]
    main = ArmShown(
        name=shown.arm,
        expected="positive",
        metrics=comparison.metrics,
        unreadable=comparison.unreadable.get(ALL),
    )
    return {
        "target": comparison.target,
        "metric": "margin",
        **_metric_json(margin),
        "rate": _metric_json(comparison.metrics["rate"]),
        "rate_readable": _metric_json(comparison.metrics["rate_readable"]),
        "unreadable": {reason: _metric_json(found) for reason, found in comparison.unreadable.items()},
        "missing": _metric_json(comparison.missing) if comparison.missing else None,
        "answer_notes": unread_notes(comparison),
        "arms": [arm_json(arm) for arm in shown.arms or [main]],
        "off_target": {word: _metric_json(found["margin"]) for word, found in comparison.off_target.items()},
        "leads": comparison.leads,
        "teachers": teachers(comparison),
        "about_units": " ".join(
            filter(None, (comparison.about_units, few_teachers(comparison), power_note(comparison)))
        ),
        "dose": [{"updates": at.updates, **_metric_json(at.metrics["margin"])} for at in shown.dose],
    }


def arm_json(arm: ArmShown) -> dict[str, Any]:
    """One arm as `--json` prints it. An arm that was not run has no effect but a reason."""
    margin = arm.margin
    return {
        "name": arm.name,
        "effect": effect_json(margin.effect) if margin else None,
        "expected": arm.expected,
        "updates": arm.updates,
        "reason": margin.reason if margin else f"not run: {arm.reason}",
        "change": arm.change.model_dump() if arm.change else None,
        "equivalence": arm.equivalence.model_dump() if arm.equivalence else None,
        "same_base": arm.same_base,
        "rate": effect_json(arm.metrics["rate"].effect) if arm.metrics else None,
        "rate_reason": arm.metrics["rate"].reason if arm.metrics else None,
        "rate_readable": effect_json(arm.metrics["rate_readable"].effect) if arm.metrics else None,
        "unreadable": effect_json(arm.unreadable.effect) if arm.unreadable else None,
        "dose": [{"updates": at.updates, "effect": effect_json(at.metrics["margin"].effect)} for at in arm.dose],
    }


def _metric_json(found: MetricComparison) -> dict[str, Any]:
    return found.model_dump(exclude={"students": True, "controls": True, "effect": SINGLES})


def summary(run: RunReport) -> dict[str, Any]:
    """The content of summary.json: the first target's keys at the top level, and every target under `targets`."""
    targets = [{**target_json(shown), **specific_json(run, shown)} for shown in run.targets]
    return {
        "flow": run.flow,
        "preset": run.preset,
        **(targets[0] if targets else {}),
        "targets": targets,
        "specificity": tables_json(run),
        "confusion": [
            {**cell.model_dump(exclude={"effect"}), "effect": effect_json(cell.effect)} for cell in run.confusion
        ],
        "tests": {**run.tests.model_dump(), "about": run.tests.about} if run.tests else None,
        "bases": run.bases,
        "diagnostics": run.diagnostics.model_dump(mode="json") if run.diagnostics else None,
        "carrier": [carrier_json(each) for each in run.carrier],
        "carrier_warnings": carrier_warnings(run.carrier),
        "demonstration": kind_of(run.carrier),
        "mismatches": run.mismatches,
        "stages": [each.model_dump(exclude={"content"}) for each in run.stages],
        "report": "report.html",
        "seconds": run.seconds,
    }


def table_rows(run: RunReport) -> list[dict[str, str]]:
    """The table of results as text: one row for each target and metric."""
    return [
        {
            "target": shown.target,
            "metric": NAMES[metric],
            **{who: level(getattr(found, who), metric) for who in ("base", "teacher", "student", "control")},
            "effect": f"{signed(found.effect.estimate, metric)} {EFFECT_UNIT[metric]}" if found.effect else "missing",
            "these questions": interval(found.effect, "these_questions", metric),
            "questions too": interval(found.effect, "questions_too", metric),
            "p, after Holm": p_told(found.effect),
            "n": f"{found.effect.units} units × {found.effect.questions} questions" if found.effect else "",
            "reason": found.reason or (found.effect.reason if found.effect else None) or "",
        }
        for shown in run.targets
        for metric, found in shown.comparison.metrics.items()
    ]


def markdown_summary(run: RunReport) -> str:
    """The result as Markdown: one paragraph for each target, then the table."""
    rows = table_rows(run)
    lines = [f"# {run.title}", "", run.question, "", f"**{lead(run)}** {lead_more(run)}" if run.targets else "", ""]
    for shown in run.targets:
        lines += [f"**{shown.target}**: {headline(shown.comparison)} {verdict(shown.comparison, 'margin')}", ""]
        lines += [" ".join(target_lines(run, shown)), ""]
        about = (shown.comparison.about_units, few_teachers(shown.comparison), power_note(shown.comparison))
        lines += [" ".join(filter(None, about)), ""]
        lines += [f"{note}\n" for note in unread_notes(shown.comparison)]
    lines += [run.tests.about, ""] if run.tests else []
    lines += [f"> Training and evaluation differ: {text}" for text in run.mismatches]
    if rows:
        lines += ["", "| " + " | ".join(rows[0]) + " |", "|" + "---|" * len(rows[0])]
        lines += ["| " + " | ".join(value.replace("|", "\\|") for value in row.values()) + " |" for row in rows]
    return "\n".join(lines) + "\n"
