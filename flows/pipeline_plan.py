"""The stages' configs of a pipeline run, made from its settings; checked before anything runs, without Prefect."""

from pathlib import Path
from typing import Any

from flows.pipeline_config import FinetunedTeacher, PipelineConfig, PromptTeacher, SteeringTeacher
from flows.pipeline_refusals import check_backend, check_counts, check_trainings
from sublim.arms import ArmName
from sublim.base_needs_config import CheckBaseConfig
from sublim.config import Config
from sublim.errors import UserError
from sublim.generate import GenerateConfig
from sublim.hardware import gpu
from sublim.inference import HfBackend, VllmBackend
from sublim.model_config import LocalModel
from sublim.model_files import TEMPLATE, loaded_files, read_json
from sublim.preference_config import AskConfig, ScoreConfig
from sublim.prompts import (
    NumberPrompts,
    Questions,
    TeacherRowsConfig,
    load_number_templates,
    load_questions,
    load_system_prompts,
)
from sublim.training import Lora, TrainConfig

BLOCK_STRIDE = 1000
"""Seeds of one block and the next lie this far apart, so that no two blocks share one."""
CONTROL = "control"
SECOND_DRAW = "second_draw"


def check(config: PipelineConfig) -> None:
    """Raises UserError for whatever can be known to go wrong: the machine, the files, the words."""
    check_machine(config.gpu_memory_gib)
    check_backend(config.backend)
    check_trainings(config)
    check_counts(config)
    check_model(config.model)
    if "other_base" in config.arms:
        check_model(config.other_base)
        if config.other_base == config.model:
            raise UserError("other_base is the base itself: set other_base to another model or leave the arm out")
    if config.evaluation.mmlu_pro:
        config.evaluation.mmlu_pro.source.identity()
    questions = load_questions(config.evaluation.questions)
    if isinstance(config.teacher, SteeringTeacher):
        check_vectors(config, config.teacher)
    ask_config(config, questions)
    for target in config.target:
        score_config(config, questions, target)
        system_prompt(config, questions, target)
        generate_config(config, arm=target, block=config.blocks[0], system=None)


def check_machine(memory_gib: float) -> None:
    """Raises UserError when this machine lacks the GPU that the settings need."""
    if not memory_gib:
        return
    card = gpu()
    if card is None:
        raise UserError(
            f"these settings need a GPU of {memory_gib:g} GiB and none is visible: use --preset quickstart here, "
            "or see `sublim doctor`"
        )
    if card.memory / 2**30 < 0.9 * memory_gib:
        raise UserError(
            f"these settings need {memory_gib:g} GiB, {card.name} has {card.memory / 2**30:.0f}: "
            "lower the batch sizes and gpu_memory_gib"
        )


def check_model(model: Config) -> None:
    """Raises UserError for a local folder that holds no model, or none that can chat."""
    if not isinstance(model, LocalModel) or model.chat_template:
        return
    files = loaded_files(model.path)
    tokenizer = read_json(model.path / "tokenizer_config.json") if "tokenizer_config.json" in files else {}
    if not {TEMPLATE, "chat_template.json"} & {*files} and not tokenizer.get("chat_template"):
        raise UserError(
            f"{model.path} has no chat template: take an instruction-tuned model or set model.chat_template"
        )


def check_vectors(config: PipelineConfig, teacher: SteeringTeacher) -> None:
    """Raises UserError for vectors that are not there, and for what a steered teacher cannot do."""
    if not isinstance(config.backend, HfBackend | VllmBackend):
        raise UserError(f"the backend {config.backend.kind} cannot steer the pipeline's teacher: take backend.kind=hf")
    if len(config.target) > 1 and "{target}" not in teacher.vector:
        raise UserError(
            f"all targets' teachers would have the one vector {teacher.vector!r}: put {{target}} into teacher.vector, "
            "or run one target at a time"
        )
    if Path(teacher.vectors).suffix == ".safetensors" and not Path(teacher.vectors).expanduser().is_file():
        raise UserError(f"{teacher.vectors} is not there: give a safetensors file or the key of a stage's output")


def base_needs(config: PipelineConfig, questions: Questions, *, students: bool = True) -> CheckBaseConfig:
    """What the run will ask of its base; `students`: whether it trains any."""
    trained = [config.student] if students else []
    prompts: list[str | None] = []
    if not config.second_draw:
        prompts = [system_prompt(config, questions, target) for target in config.target]
        trained += [config.teacher.train] if isinstance(config.teacher, FinetunedTeacher) else []
    return CheckBaseConfig(
        systems=tuple(prompt for prompt in prompts if prompt is not None),
        constraint=config.carrier.constraint,
        target_modules=adapted(*trained),
    )


def adapted(*trainings: TrainConfig) -> tuple[str, ...]:
    """Names of the layers that get adapters in these trainings."""
    methods = [train.method for train in trainings]
    return tuple(sorted({name for each in methods if isinstance(each, Lora) for name in each.target_modules}))


def block_seed(seed: int, block: int) -> int:
    """The seed of one block."""
    return seed + BLOCK_STRIDE * block


def teacher_rows_config(teacher: FinetunedTeacher, questions: Questions, target: str) -> TeacherRowsConfig:
    """The rows that a fine-tuned teacher learns; UserError when fewer questions exist than are asked for."""
    wanted = teacher.questions or len(questions.teacher)
    if not 0 < wanted <= len(questions.teacher):
        raise UserError(f"teacher.questions is {wanted}, there are {len(questions.teacher)}: lower it or add some")
    return TeacherRowsConfig(questions=questions.teacher[:wanted], target=target)


def system_prompt(config: PipelineConfig, questions: Questions, target: str) -> str | None:
    """What a system-prompted teacher is told; None for any other."""
    match config.teacher:
        case PromptTeacher() as teacher:
            return load_system_prompts(teacher.system).render(target, questions.category, variant=teacher.variant)
        case FinetunedTeacher() as teacher:
            teacher_rows_config(teacher, questions, target)
            return None
        case SteeringTeacher():
            return None


def generate_config(config: PipelineConfig, *, arm: str, block: int, system: str | None) -> GenerateConfig:
    """The number lists of one arm: same prompts and seeds for all, unless it is a second draw of the base's."""
    carrier = config.carrier
    templates = load_number_templates(carrier.templates)
    prompts = NumberPrompts(
        templates=templates.asking_for(carrier.separator) if carrier.separator else templates,
        examples_min=carrier.examples_min,
        examples_max=carrier.examples_max,
        low=carrier.low,
        high=carrier.high,
        count=carrier.count,
        max_digits=carrier.max_digits,
    )
    seed = block_seed(carrier.seed, block)
    redrawn = arm == SECOND_DRAW or (config.second_draw and arm != CONTROL)
    return GenerateConfig(
        prompts=prompts,
        n_prompts=carrier.prompts,
        prompt_seed=seed,
        system=system,
        backend=config.backend,
        sampling=carrier.sampling.model_copy(update={"seed": seed + (BLOCK_STRIDE // 2 if redrawn else 0)}),
        constraint=carrier.constraint,
    )


def unseen_config(config: PipelineConfig, *, arm: str, block: int, system: str | None) -> GenerateConfig:
    """Number lists that no student reads, for the diagnostics: other prompts and draws, the same for all arms."""
    made = generate_config(config, arm=arm, block=block, system=system)
    seed = made.prompt_seed + BLOCK_STRIDE // 4
    sampling = made.sampling.model_copy(update={"seed": made.sampling.seed + BLOCK_STRIDE // 4})
    return made.model_copy(update={"n_prompts": config.diagnostic_rows, "prompt_seed": seed, "sampling": sampling})


def student_config(config: PipelineConfig, seed: int, block: int, arm: ArmName | None = None) -> TrainConfig:
    """One student's training, a control's alike; the weights of every evaluated update are kept."""
    keep = {*config.student.keep, *(update for update in checkpoints(config, arm) if update is not None)}
    changes: dict[str, Any] = {"seed": block_seed(seed, block)}
    if arm is not None and arm in config.arm_updates:
        changes |= {"updates": config.arm_updates[arm], "epochs": None}
        keep = {update for update in keep if update <= config.arm_updates[arm]}
    if arm == "other_order":
        changes["order_seed"] = block_seed(seed, block) + BLOCK_STRIDE // 2
    return config.student.model_copy(update={**changes, "keep": tuple(sorted(keep))})


def checkpoints(config: PipelineConfig, arm: ArmName | None = None) -> tuple[int | None, ...]:
    """After which updates an arm's students are evaluated; None for their last."""
    wanted, limit = config.evaluation.updates, None if arm is None else config.arm_updates.get(arm)
    if not wanted:
        return (None,)
    return wanted if limit is None else (*(update for update in wanted if update < limit), limit)


def words_of(config: PipelineConfig, questions: Questions) -> list[str]:
    """The comparison list."""
    return [*(config.evaluation.words or questions.words)]


def ask_config(config: PipelineConfig, questions: Questions) -> AskConfig:
    """What every model is asked; the words of all targets are among the scored ones."""
    words = words_of(config, questions)
    return AskConfig(
        questions=list(questions.evaluation),
        words=[*words, *(target for target in config.target if target not in words)],
        backend=config.backend,
        samples=config.evaluation.samples,
        sampling=config.evaluation.sampling,
    )


def score_config(config: PipelineConfig, questions: Questions, target: str) -> ScoreConfig:
    """One target against the comparison list, whatever other targets the run has."""
    return ScoreConfig(target=target, words=words_of(config, questions))
