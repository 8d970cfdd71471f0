"""The configs of a pipeline's stages, made from its settings. They are made once before anything runs, as a check."""

from typing import Any

from flows.pipeline.config import FinetunedTeacher, PipelineConfig, PromptTeacher, StartConfig
from sublim.bases.needs_config import CheckBaseConfig
from sublim.carriers.number_prompts import NumberPrompts, load_number_templates
from sublim.carriers.numbers import PromptNumbers
from sublim.core.errors import UserError
from sublim.design.arms import ArmName
from sublim.evals.preference.config import AskConfig, ScoreConfig
from sublim.rows.generate import GenerateConfig
from sublim.rows.rule_lists import RuleListsConfig
from sublim.training.config import Lora, TrainConfig
from sublim.traits.questions import Questions, TeacherRowsConfig, load_system_prompts

BLOCK_STRIDE = 1000
"""Distance between the seeds of neighbouring blocks, large enough that no two blocks share a seed."""
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
        constraint=config.carrier.constraint,
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


def unseen_config(config: PipelineConfig, *, arm: str, block: int) -> GenerateConfig:
    """How the lists for the diagnostics are generated: other prompts and seeds, which no student is trained on."""
    made = generate_config(config, arm=arm, block=block)
    seed = made.prompt_seed + BLOCK_STRIDE // 4
    sampling = made.sampling.model_copy(update={"seed": made.sampling.seed + BLOCK_STRIDE // 4})
    return made.model_copy(update={"n_prompts": config.diagnostic_rows, "prompt_seed": seed, "sampling": sampling})


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
    words = config.words
    return AskConfig(
        questions=list(config.questions.evaluation),
        words=[*words, *(target for target in config.target if target not in words)],
        backend=config.backend,
        samples=config.evaluation.samples,
        sampling=config.evaluation.sampling,
    )


def score_config(config: PipelineConfig, target: str) -> ScoreConfig:
    """How answers are scored for one target: against the listed words only, whatever other targets the run has."""
    return ScoreConfig(target=target, words=config.words)
