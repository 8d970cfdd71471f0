"""What an analysis with SAEs leaves: report.html, tables in Prefect's UI, and the keys that `--json` prints."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl
from prefect.artifacts import create_table_artifact

from flows.runs.publish import publish_report
from flows.runs.record import Run
from flows.sae_analysis.config import SaeFlowConfig
from flows.sae_analysis.labels import Labels, given, merged
from flows.sae_analysis.study import Analysis, Contrast, sets_of
from flows.sae_analysis.tables import (
    Shown,
    contrasts_table,
    features_table,
    kinds_table,
    overlap_table,
    probe_table,
    quality_table,
    vector_table,
)
from sublim.features.config import FeatureFiguresConfig
from sublim.models.files import read_json
from sublim.report.page import FigureFile, FlowReport
from sublim.sae.config import Quality
from sublim.store.manifest import Artifact
from sublim.store.payloads import matching
from tasks.stages import draw_features, draw_probe_layers

CAPTIONS = {
    "firing": "Share of rows in which each feature fires: control across, target up; significant ones in colour",
    "effects": "The largest significant effects of each contrast, by feature",
    "overlap": "Features that two sets share, and below it what sets of matched firing rate share when the sides of "
    "the rows are permuted, so that features that fire together stay together; a star where p, corrected for all "
    "pairs, is at most .05",
}
JSON_FEATURES = 50
"""Features of each contrast that `--json` prints."""


def publish(run: Run, config: SaeFlowConfig, found: Analysis) -> dict[str, Any]:
    """Writes the report, tells Prefect's UI, and returns what `--json` prints."""
    payload = run.store.payload
    qualities = [Quality.model_validate(read_json(payload(each.quality) / "quality.json")) for each in found.saes]
    labels = {name: merged(map(payload, each)) for name, each in found.labels.items()}
    for sae in found.saes:
        if sae.note.layer in config.labels:
            labels[sae.note.name] = given(run.store, config.labels[sae.note.layer], sae.note.layer)
    probes = read_json(payload(found.probes) / "summary.json")["rows"] if found.probes else []
    shown = [read(run, each, labels[each.sae]) for each in found.contrasts]
    contrasts, kinds = contrasts_table(shown), kinds_table(shown, config.shown)
    overlaps = {
        name: overlap_rows(payload(each), [one for one in found.contrasts if one.sae == name])
        for name, each in found.overlaps.items()
    }
    shared = [overlap_table(name, rows) for name, rows in overlaps.items()]
    vectors = {
        place: pl.read_parquet(payload(each) / "vector_features.parquet") for place, each in found.vectors.items()
    }
    saes = [each.model_dump(mode="json") for each in qualities]
    outcome: dict[str, Any] = {
        "sae": saes[0],
        "saes": saes,
        "features": [line for each in shown for line in features_json(each, qualities)],
        "contrasts": [{"target": e.target, "contrast": e.kind, **e.notes} for e in shown],
        "probes": probes,
        "overlaps": [{"sae": name, **row} for name, rows in overlaps.items() for row in rows],
    }
    report = FlowReport(
        title=f"SAE analysis: {config.about or run.preset}",
        question=f"Which features do numbers, teacher and students of {' and '.join(config.pipeline.target)} light up, "
        "and are they the word's own?",
        findings=list(findings(outcome)),
        tables=[
            quality_table(qualities),
            contrasts,
            *([kinds] if kinds.rows else []),
            *shared,
            *(features_table(each, config.shown) for each in shown if each.top and not each.kind.startswith("against")),
            *([probe_table(probes)] if probes else []),
            *(vector_table(target, name, table) for (target, name), table in vectors.items()),
        ],
        figures=[
            *(figure for name in overlaps for figure in drawn(run, config, found, name)),
            *(probe_figure(run, found.probes) if found.probes else []),
        ],
        stages=run.stage_table(),
        settings=config.model_dump(mode="json"),
    )
    for key, table in (("features", contrasts), ("overlap", shared[0])):
        rows = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
        create_table_artifact(rows, key=key, description=table.title)
    return {**publish_report(run, report), **outcome}


def overlap_rows(payload: Path, contrasts: Sequence[Contrast]) -> list[dict[str, Any]]:
    """Every two sets of one SAE, and whether their contrasts have a side in common."""
    sides = {each.name: {*each.sides} for each in contrasts}
    rows = read_json(payload / "overlap.json")["rows"]
    return [{**row, "common": bool(sides[row["first"]] & sides[row["second"]])} for row in rows]


def read(run: Run, contrast: Contrast, labels: Labels) -> Shown:
    """The results of one contrast."""
    folder = run.store.payload(contrast.artifact)
    notes = read_json(folder / "contrast.json")
    table = pl.read_parquet(folder / "contrast.parquet").filter(pl.col("p").is_not_null()).sort("rank")
    known: dict[int, Any] = {}
    if contrast.examples is not None:
        examples = read_json(run.store.payload(contrast.examples) / "examples.json")["features"]
        known = {each["feature"]: each["examples"] for each in examples}
    top = table.head(JSON_FEATURES).to_dicts()
    for line in top:
        label, found = labels.get(line["feature"]), known.get(line["feature"], [])
        line |= {"label": label and label.text, "kind": label and label.kind, "examples": found}
    return Shown(contrast.target, contrast.kind, contrast.sae, notes, top)


def drawn(run: Run, config: SaeFlowConfig, found: Analysis, sae: str) -> list[FigureFile]:
    """The figures of one SAE."""
    settings, sets = FeatureFiguresConfig(level=config.level), sets_of(found.contrasts, sae)
    figures = draw_features(settings, label=sae, contrasts=sets, overlap=found.overlaps[sae])
    paths = matching(run.store.payload(figures), "*.svg")
    return [FigureFile(path, f"{sae}: {CAPTIONS[path.stem]}") for path in paths]


def features_json(shown: Shown, qualities: Sequence[Quality]) -> Iterator[dict[str, Any]]:
    """The strongest features of one contrast; label and kind are null where nobody has written or sorted one."""
    layers = {f"{each.site}-{each.layer}": each.layer for each in qualities}
    for line in shown.top:
        yield {
            "layer": layers[shown.sae],
            **{name: line[name] for name in ("feature", "effect", "p", "label", "kind")},
            "target": shown.target,
            "contrast": shown.kind,
            **{name: line[name] for name in ("q", "rate_target", "rate_control", "mean_target", "mean_control")},
        }


def findings(outcome: Mapping[str, Any]) -> Iterator[str]:
    """Sentences that answer the question, with numbers."""
    for each in outcome["saes"]:
        yield (
            f"SAE of layer {each['layer']} ({each['d_sae']} features): explained variance "
            f"{each['explained_variance']:.3f}, L0 {each['l0']:.1f}, dead {100 * each['dead']:.1f} %, CE recovered "
            f"{each['ce_recovered']:.3f} (against zeros; {each['ce_recovered_mean']:.3f} against the mean), on "
            f"{each['tokens']} held-out tokens"
        )
    for each in outcome["contrasts"]:
        if each["contrast"].startswith(("against", "word")):
            continue
        yield (
            f"{each['target']} {each['contrast']} ({each['sae']}): of {each['tested']} features tested "
            f"{each['more']} fire more and {each['less']} less, over {each['rows'][0]} and {each['rows'][1]} rows"
            f"{' in pairs' if each['paired'] else ''}"
        )
    targets = {f"{each['target']} {each['contrast']}": each["target"] for each in outcome["contrasts"]}
    between = list[dict[str, Any]]()
    for row in outcome["overlaps"]:
        if row["common"]:
            continue
        if targets[row["first"]] != targets[row["second"]]:
            between.append(row)
        elif row["p"] is not None and row["shared"]:
            yield (
                f"{row['sae']}: {row['first']} and {row['second']} share {row['shared']} of {row['sizes'][0]} and "
                f"{row['sizes'][1]} features; chance {row['chance']:.1f} [{row['low']:.0f}, {row['high']:.0f}], "
                f"p = {row['p']:.2g}, corrected {row['p_adjusted']:.2g}"
            )
    if between:
        beyond = sum(row["p_adjusted"] is not None and row["p_adjusted"] <= 0.05 for row in between)
        yield (
            f"Of {len(between)} pairs across targets without a side in common {beyond} share more than chance "
            "(corrected p at most .05)"
        )


def probe_figure(run: Run, probes: Artifact) -> list[FigureFile]:
    """Accuracy by layer."""
    drawn = draw_probe_layers(FeatureFiguresConfig(), label="probes", probes=probes)
    caption = "Accuracy of linear probes by layer; dashed: with shuffled labels; dotted: chance"
    return [FigureFile(run.store.payload(drawn) / "probes.svg", caption)]


def printed(outcome: dict[str, Any]) -> str:
    """The result as a person reads it in the terminal."""
    return "\n".join([*findings(outcome), f"report: {outcome['report']}"])
