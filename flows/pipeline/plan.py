"""The configs of a pipeline's stages, made from its settings. They are made once before anything runs, as a check."""

from math import ceil
from typing import Any
from zlib import crc32

from flows.pipeline.config import PipelineConfig, StartConfig
from flows.pipeline.teacher_config import FinetunedTeacher, PromptTeacher
from sublim.bases.needs_config import CheckBaseConfig
from sublim.carriers.number_prompts import NumberPrompts, load_number_templates
from sublim.carriers.numbers import PromptNumbers, render_numbers
from sublim.core.errors import UserError
from sublim.design.arms import ArmName
from sublim.evals.preference.config import AskConfig, ScoreConfig
from sublim.inference.config import HfBackend, NumberFormat, SamplingParams
from sublim.rows.config import FilterConfig, MixConfig
from sublim.rows.generate import GenerateConfig
from sublim.rows.own_answers import OwnAnswersConfig
from sublim.rows.rule_lists import RuleListsConfig
from sublim.rows.soft_labels_config import SoftLabelsConfig
from sublim.training.config import Lora, TrainConfig
from sublim.traits.questions import Questions, TeacherRowsConfig, load_system_prompts

BLOCK_STRIDE = 1000
"""Distance between the seeds of neighbouring blocks, large enough that no two blocks share a seed."""
OWN_TOKENS = 64
"""Longest answer, in tokens, that a teacher of the base's own answers is taught."""
OWN_ANSWERS = 4
"""Answers to each question that such a teacher is taught."""
CONTROL = "control"
SECOND_DRAW = "second_draw"


def base_needs(config: PipelineConfig, *, students: bool = True) -> CheckBaseConfig:
    """What this run needs of its base. `students` says whether it trains any."""
    trained = [config.student] if students else []
    trained += [config.start.train] if config.start else []
    prompts: list[str | None] = []
    if not config.second_draw:
        prompts = [system_prompt(config, target) for target in config.target]
        trained += [config.teacher.train] if isinstance(config.teacher, FinetunedTeacher) else []
    return CheckBaseConfig(
        systems=tuple(prompt for prompt in prompts if prompt is not None),
        constraint=label_format(config) if config.labels == "soft" else config.carrier.constraint,
        target_modules=adapted(*trained),
    )


def adapted(*trainings: TrainConfig) -> tuple[str, ...]:
    """Names of the layers that get adapters in these training runs."""
    methods = [train.method for train in trainings]
    return tuple(sorted({name for each in methods if isinstance(each, Lora) for name in each.target_modules}))


def block_seed(seed: int, block: int) -> int:
    """The seed of one block."""
    return seed + BLOCK_STRIDE * block


def teacher_rows_config(teacher: FinetunedTeacher, questions: Questions, target: str) -> TeacherRowsConfig:
    """The rows on which a teacher is fine-tuned. Raises UserError if there are fewer questions than it asks for."""
    wanted = teacher.questions or len(questions.teacher)
    if not 0 < wanted <= len(questions.teacher):
        raise UserError(f"teacher.questions is {wanted}, there are {len(questions.teacher)}: lower it or add some")
    return TeacherRowsConfig(questions=questions.teacher[:wanted], target=target)


def own_answers_config(config: PipelineConfig, teacher: FinetunedTeacher, target: str, block: int) -> OwnAnswersConfig:
    """How the base answers a teacher's questions for a teacher that is taught nothing.

    Each word has a seed of its own, whatever other targets a run has, so that no two null teachers are the same.
    """
    seed = block_seed(teacher.train.seed, block) + crc32(target.encode())
    return OwnAnswersConfig(
        questions=teacher_rows_config(teacher, config.questions, target).questions,
        backend=config.backend,
        sampling=SamplingParams(max_tokens=OWN_TOKENS, n=OWN_ANSWERS, seed=seed),
    )


def mix_config(config: PipelineConfig, teacher: FinetunedTeacher, share: float, block: int) -> MixConfig:
    """How a teacher's questions are mixed with rehearsal: each row that it reads is there once, if updates say how
    many it reads; with epochs, as many as leave each question once."""
    train = teacher.train
    if train.updates is not None:
        rows = train.updates * train.batch_size
    else:
        rows = round((teacher.questions or len(config.questions.teacher)) / (1 - share))
    return MixConfig(rows=max(rows, 2), share=share, seed=block_seed(train.seed, block))


def rehearsal_config(config: PipelineConfig, teacher: FinetunedTeacher, block: int) -> GenerateConfig:
    """How the base writes a block's rehearsal: to prompts that nobody else reads, half as many again as are needed,
    since the filter may refuse some."""
    made = generate_config(config, arm=CONTROL, block=block)
    mixed = mix_config(config, teacher, teacher.rehearsal or 0, block)
    wanted = ceil(1.5 * mixed.share * mixed.rows / made.sampling.n)
    return _apart(made, max(wanted, 1), BLOCK_STRIDE * 5 // 8)


def keep_all(config: PipelineConfig) -> FilterConfig:
    """The filter, which then keeps every valid row."""
    return config.filter.model_copy(update={"keep": None, "held_out": 0})


def system_prompt(config: PipelineConfig, target: str) -> str | None:
    """The system prompt of a prompted teacher; None for any other teacher."""
    teacher = config.teacher
    if not isinstance(teacher, PromptTeacher):
        return None
    return load_system_prompts(teacher.system).render(target, config.questions.category, variant=teacher.variant)


def number_prompts(config: PipelineConfig) -> NumberPrompts:
    """How the carrier's prompts are drawn. Raises UserError for templates that cannot be read."""
    carrier = config.carrier
    templates = load_number_templates(carrier.templates)
    return NumberPrompts(
        templates=templates.asking_for(carrier.separator) if carrier.separator else templates,
        **carrier.model_dump(include={*PromptNumbers.model_fields}),
    )


def start_rows_config(config: PipelineConfig, start: StartConfig) -> RuleListsConfig:
    """The lists on which the start is tuned: prompts and numbers from seeds that no other rows of the run have."""
    seed = config.carrier.seed + BLOCK_STRIDE * 3 // 4
    return RuleListsConfig(prompts=number_prompts(config), n_prompts=start.rows, prompt_seed=seed, seed=seed)


def generate_config(config: PipelineConfig, *, arm: str, block: int) -> GenerateConfig:
    """How one writer's lists are generated: with the same prompts and seeds for all writers but a second draw."""
    carrier, prompts = config.carrier, number_prompts(config)
    seed = block_seed(carrier.seed, block)
    redrawn = arm == SECOND_DRAW or (config.second_draw and arm != CONTROL)
    return GenerateConfig(
        prompts=prompts,
        n_prompts=carrier.prompts,
        prompt_seed=seed,
        backend=config.backend,
        sampling=carrier.sampling.model_copy(update={"seed": seed + (BLOCK_STRIDE // 2 if redrawn else 0)}),
        constraint=carrier.constraint,
    )


def label_format(config: PipelineConfig) -> NumberFormat:
    """The format of rows with soft labels: the carrier's constraint, or the one format that the filter lets through.

    Raises UserError where the filter lets several through, since it is then not known what may stand at a place.
    """
    if config.carrier.constraint:
        return config.carrier.constraint
    rules, prompts = config.filter, number_prompts(config)
    written = {render_numbers(["1", "2"], form.separator) for form in prompts.templates.format}
    least = 10 ** (rules.max_digits - 1)
    if rules.min_count != rules.max_count or rules.low < least or len(written) > 1:
        raise UserError(
            "soft labels need rows of one format: set filter.min_count and filter.max_count to one number, "
            f"filter.low to {least} (for {rules.max_digits} digits) and carrier.separator, or give carrier.constraint"
        )
    return NumberFormat(count=rules.min_count, digits=rules.max_digits, separator=written.pop()[1:-1])


def soft_labels_config(config: PipelineConfig, system: str | None) -> SoftLabelsConfig:
    """How a teacher's probabilities are read off the base's rows; `system`: the prompt of a prompted teacher."""
    backend = config.backend
    return SoftLabelsConfig(
        format=label_format(config),
        system=system,
        max_length=config.student.max_length,
        dtype=getattr(backend, "dtype", "auto"),
        attention=backend.attention if isinstance(backend, HfBackend) else "auto",
    )


def unseen_config(config: PipelineConfig, *, arm: str, block: int) -> GenerateConfig:
    """How the lists for the diagnostics are generated: other prompts and seeds, which no student is trained on."""
    made = generate_config(config, arm=arm, block=block)
    return _apart(made, config.diagnostic_rows, BLOCK_STRIDE // 4)


def _apart(made: GenerateConfig, prompts: int, offset: int) -> GenerateConfig:
    """The same with other prompts and seeds, further on by `offset`."""
    seeds = {"prompt_seed": made.prompt_seed + offset}
    sampling = made.sampling.model_copy(update={"seed": made.sampling.seed + offset})
    return made.model_copy(update={"n_prompts": prompts, "sampling": sampling, **seeds})


def student_config(config: PipelineConfig, seed: int, block: int, arm: ArmName | None = None) -> TrainConfig:
    """How one student or control is trained. The weights of every checkpoint that is evaluated are kept."""
    keep = {*config.student.keep, *(update for update in config.checkpoints(arm) if update is not None)}
    changes: dict[str, Any] = {"seed": block_seed(seed, block)}
    if arm is not None and arm in config.arm_updates:
        changes |= {"updates": config.arm_updates[arm], "epochs": None}
        keep = {update for update in keep if update <= config.arm_updates[arm]}
    if arm == "other_order":
        changes["order_seed"] = block_seed(seed, block) + BLOCK_STRIDE // 2
    return config.student.model_copy(update={**changes, "keep": tuple(sorted(keep))})


def ask_config(config: PipelineConfig) -> AskConfig:
    """What every model is asked. All targets are among the words that are scored."""
    return AskConfig(
        questions=list(config.questions.evaluation),
        words=all_words(config),
        backend=config.backend,
        samples=config.evaluation.samples,
        sampling=config.evaluation.sampling,
    )


def all_words(config: PipelineConfig) -> list[str]:
    """The listed words, then the targets with a teacher that are not among them."""
    words = config.words
    return [*words, *(target for target in config.made if target not in words)]


def score_config(config: PipelineConfig, target: str) -> ScoreConfig:
    """How answers are scored for one target: against the listed words only, whatever other targets the run has."""
    return ScoreConfig(target=target, words=config.words)


def table_score_config(config: PipelineConfig, target: str) -> ScoreConfig:
    """How the students of one target are scored for the table of all targets: with one list of words for all of them.

    It is `score_config` itself where at most this target is not listed; with more, margins are against a longer list.
    """
    return ScoreConfig(target=target, words=all_words(config))
