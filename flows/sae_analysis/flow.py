"""SAE analysis: which features do a teacher's numbers, a teacher and a student light up, and are they the word's own?

    sublim run sae-analysis --preset quickstart --target owl        # an SAE trained here, no GPU
    sublim run sae-analysis --preset smollm2-5m                     # three targets, 5 million tokens; for a GPU
    sublim run sae-analysis --preset gemma-2-9b-a6000               # Gemma Scope at layers 9, 20 and 31
    python -m flows.sae_analysis --preset quickstart

Contrasts, row against row: the target's numbers against the control's for the same prompts, read by the base; the
teacher against the base, and a student against its control student and against the base, on one and the same text; the
target's word against other words. Sets of features are then set against each other, and against random features that
fire as often.
"""

from collections.abc import Iterator
from typing import Any

import polars as pl
from prefect import flow

from flows.pipeline.arms import student_sets
from flows.pipeline.bases import check_bases, prepare_bases
from flows.pipeline.block import rows_by_writer, write_block
from flows.pipeline.flow import derive, train_students
from flows.pipeline.keys import BaseName
from flows.pipeline.plan import CONTROL
from flows.runs.parameters import Loader
from flows.runs.record import Run, recorded
from flows.sae_analysis.config import SaeFlowConfig
from flows.sae_analysis.plan import check, check_layers, labels_config, means_config, probe_reading
from flows.sae_analysis.report import printed, publish
from flows.sae_analysis.saes import encode_all, make_saes, note_of, take_saes
from flows.sae_analysis.study import Analysis, Carrier, Contrast, Sae, encodings_of, sets_of
from sublim.features.config import ContrastConfig, ExamplesConfig, OverlapConfig, VectorFeaturesConfig
from sublim.features.labels.config import AnnotateConfig
from sublim.steering.config import DifferenceConfig
from sublim.store.manifest import Artifact
from tasks.processes import one_process
from tasks.stages import (
    annotate,
    contrast_features,
    difference_vectors,
    fit_probes,
    import_labels,
    mean_activations,
    overlap_features,
    read_activations,
    show_examples,
    vector_features,
)

__all__ = ["printed", "sae_analysis"]

load_config = Loader("sae_analysis", SaeFlowConfig)


@flow(
    name="sae-analysis",
    flow_run_name=load_config.run_name(lambda config: f"features of {config.targets}"),
)
def sae_analysis(
    preset: str = "quickstart", target: str | None = None, settings: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Finds the features that subliminal numbers, their teacher and its students share, against controls and chance.

    Args:
        preset: Settings to start from: quickstart, smollm2-5m, gemma-2-9b-a6000, or the path of a YAML file.
        target: The word or words, as in owl or owl,wolf; nothing for the preset's.
        settings: Values laid over the preset's, as a tree.
    """
    config = load_config(preset, target, settings)
    check(config)
    with recorded("sae-analysis", preset, ",".join(config.pipeline.target)) as run:
        return publish(run, config, conducted(run, config))


def conducted(run: Run, config: SaeFlowConfig) -> Analysis:
    """Runs every stage, or takes it from the cache."""
    bases, taken = prepare_bases(config.pipeline), take_saes(config)
    check_layers(config, [note_of(run, each) for each in taken], run.store.payload(bases["base"]))
    check_bases(config.pipeline, bases, students=bool(config.pairs))
    carrier = write_carrier(config, bases)
    saes = make_saes(run, config, carrier, taken)
    encoded = encode_all(config, carrier, saes)
    targets = config.pipeline.target
    contrasts = [
        each for sae in saes for target in targets for each in contrast_all(config, carrier, sae, encoded, target)
    ]
    overlaps = {
        sae.note.name: overlap_features(
            OverlapConfig(size=config.size, level=config.level),
            label=sae.note.name,
            contrasts=sets_of(contrasts, sae.note.name),
            targets=encodings_of(contrasts, sae.note.name, encoded, 0),
            controls=encodings_of(contrasts, sae.note.name, encoded, 1),
        )
        for sae in saes
    }
    vectors = {
        (target, sae.note.name): decoded(config, carrier, sae, target)
        for sae in saes
        for target in (targets if config.vectors else ())
    }
    labels = {sae.note.name: list(labelled(run, config, carrier, sae, contrasts)) for sae in saes}
    return Analysis(saes, contrasts, overlaps, vectors, labels, probed(config, carrier, saes))


def labelled(
    run: Run, config: SaeFlowConfig, carrier: Carrier, sae: Sae, contrasts: list[Contrast]
) -> Iterator[Artifact]:
    """Fetches labels of an SAE's features from Neuronpedia and has those of the features shown sorted by the
    annotator."""
    wanted = labels_config(config, sae.note)
    if wanted is None:
        return
    labels = import_labels(wanted, label=sae.note.name)
    yield labels
    if config.annotator is None:
        return
    known = set(pl.read_parquet(run.store.payload(labels) / "labels.parquet")["feature"])
    own = [run.store.payload(each.artifact) / "contrast.parquet" for each in contrasts if each.sae == sae.note.name]
    shown = {feature for path in own for feature in pl.read_parquet(path).sort("rank").head(config.shown)["feature"]}
    if not shown & known:  # a list of none would mean all that have a label
        return
    only = tuple(f"{sae.note.layer}_{feature}" for feature in sorted(shown & known))
    settings = AnnotateConfig(only=only, layer=sae.note.layer, backend=config.annotator)
    base = carrier.base if settings.needs_base else None
    yield annotate(settings, label=sae.note.name, labels=labels, base=base)


def probed(config: SaeFlowConfig, carrier: Carrier, saes: list[Sae]) -> Artifact | None:
    """Fits probes that tell each target's rows from the control's."""
    if config.probes is None:
        return None
    layers = config.probe_layers or tuple(sae.note.layer for sae in saes)
    reading = probe_reading(config, config.probes, layers)
    with one_process():
        read = {
            arm: read_activations(reading, label=arm, base=carrier.base, rows=rows)
            for arm, rows in carrier.rows.items()
        }
    control = read.pop(CONTROL)
    # All answers to a prompt are on one side of a split.
    settings = config.probes.model_copy(update={"answers": config.study.carrier.sampling.n})
    return fit_probes(settings, target=read, control=control)


def write_carrier(config: SaeFlowConfig, bases: dict[BaseName, Artifact]) -> Carrier:
    """The number lists of every teacher and of the base, and the students trained on them, as the pipeline makes
    them."""
    study = config.pipeline
    block = write_block(study, bases["base"], study.blocks[0], (CONTROL, *study.target))
    students: dict[str, list[Artifact]] = {}
    if config.pairs:
        seen = study.model_copy(update={"arms": (), "seeds": study.seeds[: config.pairs], "blocks": (block.number,)})
        students = train_students(seen, bases, [block], student_sets(seen, rows_by_writer([block]), derive))
    return Carrier(bases["base"], block.teachers, block.rows, students)


def contrast_all(
    config: SaeFlowConfig, carrier: Carrier, sae: Sae, encoded: dict[str, Artifact], target: str
) -> list[Contrast]:
    """Every contrast of one target in one SAE's features."""
    base, read = f"base {CONTROL}", carrier.rows[CONTROL]
    others = [other for other in config.pipeline.target if other != target]
    students = [f"student {pair}" for pair in range(config.pairs)]
    # The kind, its two encodings, and the rows to show as examples
    sides: list[tuple[str, str, str, Artifact | None]] = [
        ("numbers", f"base {target}", base, carrier.rows[target]),
        *((f"against {other}", f"base {target}", f"base {other}", None) for other in others),
        *([("teacher", f"teacher {target}", base, read)] if f"teacher {target}" in encoded else []),
        *((student, f"{student} {target}", f"{student} {CONTROL}", read) for student in students),
        *((f"{student} minus base", f"{student} {target}", base, read) for student in students),
        *((f"word {each}", f"word {each} {target}", f"word {each} others {target}", None) for each in config.contexts),
    ]
    found: list[Contrast] = []
    for kind, ours, theirs, rows in sides:
        label = f"{target} {kind} {sae.note.name}"
        paired = not kind.startswith("word")
        settings = ContrastConfig(sae=sae.note.name, pair=paired, level=config.level)
        made = contrast_features(settings, label=label, target=encoded[ours], control=encoded[theirs])
        examples = None
        if rows is not None:
            examples = show_examples(
                ExamplesConfig(sae=sae.note.name, features=config.shown),
                label=label,
                base=carrier.base,
                contrast=made,
                features=encoded[ours],
                rows=rows,
            )
        found.append(Contrast(target, kind, (ours, theirs), sae.note.name, made, examples))
    return found


def decoded(config: SaeFlowConfig, carrier: Carrier, sae: Sae, target: str) -> Artifact:
    """The features along the target's steering vector at the SAE's place."""
    label = f"{target} {sae.note.name}"
    settings = means_config(config, sae.note)
    rows = carrier.rows
    read = mean_activations(settings, label=label, base=carrier.base, rows=rows[target], partner=rows[CONTROL])
    vectors = difference_vectors(DifferenceConfig(), label=label, target=read)
    return vector_features(VectorFeaturesConfig(top=config.shown), label=label, sae=sae.artifact, vectors=vectors)
