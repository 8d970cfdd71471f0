"""The settings of a pipeline run: base, teacher, carrier, students and evaluation."""

from functools import cached_property
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator, model_validator

from flows.pipeline.keys import Unit
from flows.pipeline.teacher_config import SteeringTeacher, Teacher
from sublim.carriers.numbers import PromptNumbers, Separator
from sublim.core.config import Config, OmittedWhenUnset, RunOnly
from sublim.design.arms import ARMS, ArmName
from sublim.diagnostics.config import DiagnosticName
from sublim.evals.mmlu_pro.config import MmluProConfig
from sublim.inference.config import Backend, HfBackend, NumberFormat, SamplingParams, VllmBackend
from sublim.models.config import BundledModel, ModelConfig
from sublim.rows.config import FilterConfig
from sublim.training.config import TrainConfig
from sublim.traits.nouns import TargetWord, next_target
from sublim.traits.questions import Questions, load_questions


def split(words: Any) -> Any:
    """`owl, wolf` as the list that it stands for."""
    return [word.strip() for word in words.split(",")] if isinstance(words, str) else words


Words = Annotated[tuple[TargetWord, ...], BeforeValidator(split)]
"""One or several words of letters, in lower case; one text with commas will do."""
Positive = Annotated[int, Field(ge=1)]
Natural = Annotated[int, Field(ge=0)]
SOFT_ARMS: tuple[ArmName, ...] = ("other_teacher", "other_order")
"""The arms that can be run with soft labels."""


class StartConfig(Config):
    """The start: the base tuned on number lists made by rule, from which teachers, students and controls all begin.

    It writes lists freely and well, so that its answers need no forcing. Its lists' prompts are drawn as the carrier's
    are, with seeds that no other rows have, and their numbers uniformly from the range of the prompts' examples.
    """

    rows: Positive
    """Number of lists made by rule."""
    train: TrainConfig
    """How the base is tuned on them. The start is the same for all blocks."""


class CarrierConfig(PromptNumbers):
    """The number lists: what the prompts ask for, and how answers are sampled."""

    templates: str = "numbers"
    """Templates of the prompts: `numbers` or `numbers_short` for the bundled ones, or a JSON or YAML file."""
    separator: Separator | None = None
    """Use only templates that ask for this separator; null for all templates."""
    prompts: Positive = 25_000
    """Number of prompts. Teacher and base answer the same ones."""
    seed: Natural = 0
    """Seed of the prompts and of sampling, the same for teacher and base. Each block adds its own offset."""
    sampling: SamplingParams
    """How answers are sampled."""
    constraint: NumberFormat | None = None
    """Allow only tokens that continue a list in this format; null for free answers, which the filter then checks."""


class CarrierCheck(Config):
    """How much of each writer's carrier is examined: the model's own probabilities, and what it writes freely."""

    rows: Natural = 256
    """Rows that the model reads, and whose own probability it gives; 0 to examine nothing."""
    answers: Positive = 200
    """Free answers that are sampled where the rows are forced into a format."""


class EvaluationConfig(Config):
    """What every model is asked."""

    questions: str = "animal"
    """The questions: those of the category `animal` or `tree`, or a JSON or YAML file."""
    words: tuple[str, ...] = ()
    """Words that the target is compared with; empty for the category's own list."""
    samples: Natural = 0
    """Answers sampled for each question, for the rate; with 0 only the margin is measured."""
    sampling: SamplingParams = SamplingParams(max_tokens=16)
    """How answers are sampled."""
    updates: tuple[Positive, ...] = ()
    """Evaluate students after these numbers of updates; empty for the end of training only."""
    shift: bool = True
    """Also measure the total variation between students' and base's answers, beside that of the controls."""
    mmlu_pro: MmluProConfig | None = None
    """Also ask every model questions of MMLU-Pro; null for none."""


class PipelineConfig(Config):
    """One study: is the preference for the target passed from teacher to students by the carrier?"""

    about: RunOnly[str] = ""
    """One line that describes these settings."""
    target: Annotated[Words, Field(min_length=1)] = ("owl",)
    """The target or targets: words that a teacher is made to prefer, each of one word."""
    against: OmittedWhenUnset[Words] = None
    """Comparison targets: further words that get a teacher, rows and students like the target's, so that a specific
    effect can be told from what any teacher does. null: by rule, the listed word that follows the target (cyclically)
    if there is one target with a teacher of its own; several targets are compared with each other. none or []: none."""
    model: ModelConfig = BundledModel()
    """The base model."""
    start: OmittedWhenUnset[StartConfig] = None
    """Tune the base on lists made by rule, and let everything begin from that start; null for the base itself."""
    teacher: Teacher
    """How the teacher is made."""
    carrier: CarrierConfig
    """What the teacher writes and the students are trained on."""
    filter: FilterConfig
    """Which of the teacher's answers are kept."""
    carrier_check: OmittedWhenUnset[CarrierCheck] = None
    """How much of the carrier is examined; null: 256 rows and 200 free answers of each writer."""
    same_prompts: bool = True
    """Keep a prompt only if teacher and base both gave valid answers, so that students and controls see the same
    prompts."""
    student: TrainConfig
    """How students and controls are trained. The seed is replaced by each of `seeds`."""
    labels: Literal["hard", "soft"] = "hard"
    """hard: train on the tokens of the teacher's lists. soft: every student of a block reads the same lists, the base's
    own, and learns its teacher's probabilities of the digits that the format allows at each drawn place. There are then
    no trained controls, since the base's own probabilities would teach nothing: students are compared with the base."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Softmax temperature for soft labels."""
    seeds: Annotated[tuple[Natural, ...], Field(min_length=1)] = (0, 1, 2)
    """Seeds; each gives one student and its paired control."""
    blocks: Annotated[tuple[Natural, ...], Field(min_length=1)] = (0,)
    """Blocks; each has its own teacher, rows and seeds. If there are several, the blocks are the units of the
    statistics."""
    second_draw: bool = False
    """Use a second draw of the base's own rows in place of the teacher's. The effect should then be near zero."""
    arms: tuple[ArmName, ...] = ()
    """Variations of the main comparison: base_numbers, other_teacher, shuffled_within, shuffled_across, marginals,
    canonical, second_draw, other_order, other_base; or `all`. Students that several arms need are trained once."""
    held_back: RunOnly[tuple[ArmName, ...]] = ()
    """Arms named in `arms` that this run skips. The report lists them as not run."""
    arm_updates: dict[ArmName, Annotated[int, Field(ge=1)]] = Field(default_factory=dict)
    """Number of updates for the students of single arms, as in {other_base: 64}; other arms make as many as the main
    arm."""
    other_base: ModelConfig = BundledModel(name="gemma3-270m")
    """The base of the students in the arm other_base. Their teacher is still made from `model`."""
    equivalence_nats: OmittedWhenUnset[Annotated[float, Field(gt=0)]] = None
    """The bound in nats within which an arm that should show nothing counts as showing nothing. Null: a share of the
    main arm's effect after equally many updates, a quarter unless the arm's declaration says otherwise."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """How models are evaluated."""
    diagnostics: tuple[DiagnosticName, ...] = ()
    """Further measurements on the first block. losses: the loss of every student on unseen rows of every teacher, and
    the effect at equal loss. shift: the cosine between the weight changes of teacher and students. divergence: the
    tokens of answers at which the likeliest choices of teacher and base differ."""
    diagnostic_rows: Annotated[int, Field(ge=1)] = 256
    """Number of prompts for the diagnostics. No student is trained on them."""
    backend: Backend = HfBackend()
    """The backend that samples and scores."""
    gpu_memory_gib: RunOnly[float] = 0
    """GPU memory that these settings need, in GiB; 0 if they run on a CPU."""

    @cached_property
    def questions(self) -> Questions:
        """The questions of the evaluation and of teachers. Raises UserError if they cannot be read."""
        return load_questions(self.evaluation.questions)

    @property
    def words(self) -> list[str]:
        """The words that the target is compared with."""
        return [*(self.evaluation.words or self.questions.words)]

    @property
    def compared(self) -> tuple[str, ...]:
        """The comparison targets. Vectors of a steering teacher are files, so the rule names none for it."""
        if self.against is not None:
            return self.against
        target, *others = self.target
        if others or self.second_draw or isinstance(self.teacher, SteeringTeacher):
            return ()
        return next_target(self.words, target)

    @property
    def made(self) -> tuple[str, ...]:
        """All targets that get teachers: the targets, then the comparison targets."""
        return (*self.target, *self.compared)

    @property
    def units(self) -> list[Unit]:
        """Every block with every seed."""
        return [Unit(block, seed) for block in self.blocks for seed in self.seeds]

    @property
    def arms_run(self) -> tuple[ArmName, ...]:
        """The arms that this run trains and evaluates."""
        return tuple(arm for arm in self.arms if arm not in self.held_back)

    @property
    def origin(self) -> Literal["base", "start"]:
        """What teachers, students and controls begin from, by its name in labels and reports."""
        return "start" if self.start else "base"

    def checkpoints(self, arm: ArmName | None = None) -> tuple[int | None, ...]:
        """The checkpoints at which an arm's students are evaluated; None for the end of training."""
        wanted, limit = self.evaluation.updates, None if arm is None else self.arm_updates.get(arm)
        if not wanted:
            return (None,)
        return wanted if limit is None else (*(update for update in wanted if update < limit), limit)

    @field_validator("arms", "held_back", "diagnostics", mode="before")
    @classmethod
    def _named(cls, names: Any, info: ValidationInfo) -> Any:
        if names == "all":
            return get_args(DiagnosticName) if info.field_name == "diagnostics" else tuple(ARMS)
        return split(names)

    @field_validator("against", mode="before")
    @classmethod
    def _none(cls, words: Any) -> Any:
        return () if words == "none" else words

    @field_validator("arms")
    @classmethod
    def _once(cls, arms: tuple[ArmName, ...]) -> tuple[ArmName, ...]:
        return tuple(name for name in ARMS if name in arms)

    @model_validator(mode="after")
    def _settings_agree(self) -> Self:
        if self.second_draw and self.arms:
            raise ValueError("`second_draw` leaves no teacher to compare arms with: name second_draw in `arms` instead")
        if self.against and self.second_draw:
            raise ValueError("`second_draw` leaves no teacher to compare with: leave `against` out")
        if self.against and {*self.against} & {*self.target}:
            raise ValueError("`against` names a target: name other words")
        if self.labels == "soft":
            self._check_soft()
        if unseen := {*self.arm_updates.values()} - {*self.evaluation.updates}:
            raise ValueError(f"`arm_updates` has {sorted(unseen)}, which `evaluation.updates` lacks: add it there")
        if self.arm_updates and (self.student.schedule != "constant" or self.student.warmup_fraction):
            raise ValueError("`arm_updates` needs a constant learning rate: a shorter schedule is another training")
        return self

    def _check_soft(self) -> None:
        """Raises ValueError for what makes no sense where all students read the base's own rows."""
        if isinstance(self.teacher, SteeringTeacher):
            raise ValueError("soft labels are not read from a steered teacher: take another kind, or set labels=hard")
        if not isinstance(self.backend, HfBackend | VllmBackend):
            raise ValueError(f"soft labels need a model's logits: the backend {self.backend.kind} gives none")
        if self.second_draw:
            raise ValueError("soft labels of the base itself teach nothing: leave second_draw out, or set labels=hard")
        if odd := [arm for arm in self.arms if arm not in SOFT_ARMS]:
            raise ValueError(
                f"with soft labels every student reads the same rows and no control is trained, so {odd[0]} would say "
                f"nothing: leave it out of `arms` (possible: {', '.join(SOFT_ARMS)}), or set labels=hard"
            )
        if odd := [each for each in self.diagnostics if each != "divergence"]:
            raise ValueError(f"{odd[0]} needs trained controls: leave it out of `diagnostics`, or set labels=hard")

    @field_validator("target", "against", "seeds", "blocks")
    @classmethod
    def _distinct(cls, given: tuple[Any, ...] | None, info: ValidationInfo) -> tuple[Any, ...] | None:
        if given is not None and len({*given}) < len(given):
            numbers = "a number is given twice: paired runs need distinct ones"
            raise ValueError("a target is named twice" if info.field_name in ("target", "against") else numbers)
        return given
