"""Comparisons of students with their controls: by preference, on MMLU-Pro, and by distance from the base."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial

from flows.pipeline.arms import Contrast, contrasts
from flows.pipeline.config import PipelineConfig
from flows.pipeline.keys import ModelKey
from flows.pipeline.plan import score_config, table_score_config
from flows.pipeline.study import Comparison
from sublim.evals.effect_config import CompareConfig
from sublim.evals.mmlu_pro.config import ScoreMmluProConfig
from sublim.evals.preference.config import ScoreConfig
from sublim.evals.specificity.config import CompareTargetsConfig
from sublim.evals.total_variation.config import CompareShiftConfig
from sublim.store.manifest import Artifact
from tasks.stages import compare, compare_mmlu_pro, compare_shift, compare_targets, score, score_mmlu_pro

Scorer = Callable[[ScoreConfig, ModelKey], Artifact]


def scorer(asked: Mapping[ModelKey, Artifact]) -> Scorer:
    """Scores models by the settings of the score; each once, however many comparisons need it."""
    found: dict[tuple[str, tuple[str, ...], ModelKey], Artifact] = {}

    def scored(chosen: ScoreConfig, key: ModelKey) -> Artifact:
        name = (chosen.target, tuple(chosen.words), key)
        if name not in found:
            found[name] = score(chosen, label=f"{chosen.target}: {key!s}", asked=asked[key])
        return found[name]

    return scored


def compare_all(config: PipelineConfig, contrasts: Iterable[Contrast], scored: Scorer) -> list[Comparison]:
    """Students against controls, for every contrast and checkpoint."""

    def given(target: str, key: ModelKey) -> Artifact:
        return scored(score_config(config, target), key)

    return _compare_each(config, contrasts, given, partial(compare, paired(config)))


def compare_capability(
    config: PipelineConfig,
    contrasts: Iterable[Contrast],
    answered: Mapping[ModelKey, Artifact],
    questions: Artifact | None,
) -> list[Comparison]:
    """Students against their controls on MMLU-Pro, for every contrast and checkpoint; nothing if it was not asked."""
    if questions is None:
        return []
    scores = {
        key: score_mmlu_pro(ScoreMmluProConfig(), label=str(key), asked=asked, questions=questions)
        for key, asked in answered.items()
    }
    return _compare_each(config, contrasts, lambda _, key: scores[key], partial(compare_mmlu_pro, paired(config)))


def compare_shifts(
    config: PipelineConfig, contrasts: Iterable[Contrast], asked: Mapping[ModelKey, Artifact]
) -> list[Comparison]:
    """Students' distance from the base beside their controls', for every contrast that has control students."""
    if not config.evaluation.shift:
        return []
    plain = CompareShiftConfig(words=tuple(config.words), compare=paired(config))
    controlled = [each for each in contrasts if each.controls is not None]
    return _compare_each(config, controlled, lambda _, key: asked[key], partial(compare_shift, plain), teachers=False)


def compare_teachers(config: PipelineConfig, scored: Scorer) -> dict[int | None, Artifact]:
    """Students of every target's teacher beside each other, at every checkpoint; nothing for one target alone."""
    if len(config.made) < 2:
        return {}
    plain = CompareTargetsConfig(
        targets=config.made, words=tuple(table_score_config(config, config.target[0]).words), compare=paired(config)
    )
    main = [next(contrasts(config, target)) for target in config.made]

    def given(contrast: Contrast, keys: Iterable[ModelKey]) -> list[Artifact]:
        return [scored(table_score_config(config, contrast.target), key) for key in keys]

    return {
        update: compare_targets(
            plain,
            label=" ".join([*config.made, *([str(update)] if update else [])]),
            students=[each for one in main for each in given(one, one.student_keys(config.units, update))],
            controls=given(main[0], main[0].control_keys(config.units, update)),
            teachers=[each for one in main for each in given(one, one.teacher_keys(config.units))],
        )
        for update in config.checkpoints()
    }


def paired(config: PipelineConfig) -> CompareConfig:
    """How students are paired with controls: in the order of the units."""
    return CompareConfig(blocks=tuple(unit.block for unit in config.units))


def _compare_each(
    config: PipelineConfig,
    contrasts: Iterable[Contrast],
    given: Callable[[str, ModelKey], Artifact],
    stage: Callable[..., Artifact],
    *,
    teachers: bool = True,
) -> list[Comparison]:
    """Calls `stage` for every contrast and checkpoint. `given` has what is compared of a model for a target."""
    units, found = config.units, list[Comparison]()
    for contrast in contrasts:

        def of(keys: Iterable[ModelKey], target: str = contrast.target) -> list[Artifact]:
            return [given(target, key) for key in keys]

        for update in contrast.updates:
            artifact = stage(
                label=contrast.label(update),
                students=of(contrast.student_keys(units, update)),
                controls=of(contrast.control_keys(units, update)),
                base=of([contrast.base])[0],
                **({"teacher": of(contrast.teacher_keys(units)) or None} if teachers else {}),
            )
            found.append(Comparison(contrast, update, artifact))
    return found
