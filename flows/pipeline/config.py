"""Everything a pipeline run can be told: the model, the teacher, the carrier, the students, the evaluation."""

from typing import Annotated, Any, Literal, Self, get_args

from pydantic import Field, ValidationInfo, field_validator, model_validator

from sublim.carriers.numbers import Separator
from sublim.core.config import Config, RunOnly
from sublim.design.arms import ARMS, ArmName
from sublim.diagnostics.config import DiagnosticName
from sublim.evals.mmlu_pro.config import MmluProConfig
from sublim.inference.config import Backend, HfBackend, NumberFormat, SamplingParams
from sublim.models.config import BundledModel, ModelConfig
from sublim.residual.edits import Edit, Site, Steering, Tokens
from sublim.rows.config import FilterConfig
from sublim.training.config import TrainConfig
from sublim.traits.nouns import target_word

Positive = Annotated[int, Field(ge=1)]
Natural = Annotated[int, Field(ge=0)]


class PromptTeacher(Config):
    """The base under a system prompt that states the liking."""

    kind: Literal["prompt"] = "prompt"
    system: str = "system"
    """System prompts: `system` for ours, or a JSON or YAML file."""
    variant: int = 0
    """Which of the category's texts."""


class FinetunedTeacher(Config):
    """The base trained to answer the target to questions that the evaluation does not ask."""

    kind: Literal["finetuned"] = "finetuned"
    questions: int | None = None
    """How many of the category's teacher questions to train on; nothing: all."""
    train: TrainConfig
    """How it is trained."""


class SteeringTeacher(Config):
    """The base with a vector added to its residual stream; the steering flow makes such vectors."""

    kind: Literal["steering"] = "steering"
    vectors: str
    """Where the vectors are: a safetensors file, or six or more digits of the key of a stage's output in the store."""
    vector: str = "{target}"
    """Name of the vector there; `{target}` stands for the target."""
    site: Site | None = None
    """Where a file's vector is added, if its metadata do not say it."""
    layer: Annotated[int, Field(ge=0)] | None = None
    """The block, counted from 0, if a file's metadata do not say it."""
    strength: float = 1.0
    """Times the vector."""
    scale: Literal["raw", "relative"] = "relative"
    """relative: a strength of 1 adds as much length as the stream itself had where the vector was read; raw: times the
    vector as it is."""
    tokens: Tokens = "all"
    """Which tokens are touched."""

    def steering(self, target: str) -> Steering:
        """The edit for one target."""
        edit = Edit(
            vector=self.vector.replace("{target}", target),
            strength=self.strength,
            scale=self.scale,
            tokens=self.tokens,
        )
        return Steering(edits=(edit,))


Teacher = Annotated[PromptTeacher | FinetunedTeacher | SteeringTeacher, Field(discriminator="kind")]


class CarrierConfig(Config):
    """The number lists: what is asked, and how answers are drawn."""

    templates: str = "numbers"
    """Number-prompt templates: `numbers` or `numbers_short` for ours, or a JSON or YAML file."""
    separator: Separator | None = None
    """Use only the formats that ask for this separator (a name of the filter's); nothing: all."""
    examples_min: Positive = 3
    """Fewest example numbers shown."""
    examples_max: Positive = 9
    """Most example numbers shown."""
    low: Natural = 100
    """Smallest example."""
    high: Annotated[int, Field(ge=0, lt=2**63 - 1)] = 999
    """Largest example."""
    count: Positive = 10
    """Numbers asked for."""
    max_digits: Positive = 3
    """Digits asked for."""
    prompts: Positive = 25_000
    """Prompts drawn; teacher and base answer the same ones."""
    seed: Natural = 0
    """Seeds prompts and draws; the teacher's and the base's draws share it. Blocks add to it."""
    sampling: SamplingParams
    """How answers are drawn."""
    constraint: NumberFormat | None = None
    """Force the answers' format; nothing: free answers, left to the filter."""

    @model_validator(mode="after")
    def _limits_leave_room(self) -> Self:
        for least, most in (("examples_min", "examples_max"), ("low", "high")):
            if getattr(self, least) > getattr(self, most):
                raise ValueError(f"{least} {getattr(self, least)} is above {most} {getattr(self, most)}")
        return self


class EvaluationConfig(Config):
    """What teachers and students are asked."""

    questions: str = "animal"
    """Questions of a category: `animal`, `tree`, or a JSON or YAML file."""
    words: tuple[str, ...] = ()
    """Words to compare the target with; empty: the category's own list."""
    samples: Natural = 0
    """Sampled answers per question, for the sampled rate; 0: only the log-prob margin."""
    sampling: SamplingParams = SamplingParams(max_tokens=16)
    """How answers are drawn."""
    updates: tuple[Positive, ...] = ()
    """Checkpoints of the students to evaluate, as updates; empty: only the last."""
    shift: bool = True
    """How far students' answers have moved from the base's, against their controls', by total variation."""
    mmlu_pro: MmluProConfig | None = None
    """MMLU-Pro's questions for base, teachers, students and controls; nothing: not asked."""


class PipelineConfig(Config):
    """One study: does the target pass from teacher to students through the carrier?"""

    about: RunOnly[str] = ""
    """One line on what these settings are."""
    target: Annotated[tuple[str, ...], Field(min_length=1)] = ("owl",)
    """The word or words the teacher is made to like, one word each."""
    model: ModelConfig = BundledModel()
    """The base."""
    teacher: Teacher
    """How the teacher is made."""
    carrier: CarrierConfig
    """The data the teacher writes."""
    filter: FilterConfig
    """Which answers are kept."""
    same_prompts: bool = True
    """Keep a prompt only where every arm's answer is valid, so that students and controls train on the same prompts."""
    student: TrainConfig
    """How students and their controls are trained; its seed is replaced by each of `seeds`."""
    labels: Literal["hard", "soft"] = "hard"
    """hard: the carrier's tokens. soft: the teacher's whole distribution at each of them; needs a fine-tuned teacher,
    and a control then stays at the base, whose own logits it learns."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Of soft labels."""
    seeds: Annotated[tuple[Natural, ...], Field(min_length=1)] = (0, 1, 2)
    """One student and one paired control for each."""
    blocks: Annotated[tuple[Natural, ...], Field(min_length=1)] = (0,)
    """Each block has a teacher and rows of its own, and other seeds. With several, blocks are the units."""
    second_draw: bool = False
    """Put a second draw of the base's own rows in the teacher's place: the effect should be near nothing."""
    arms: tuple[ArmName, ...] = ()
    """Further arms beside teacher against base: base_numbers, other_teacher, shuffled_within, shuffled_across,
    marginals, canonical, second_draw, other_order, other_base; or `all`. Each trains only what no other arm has."""
    held_back: RunOnly[tuple[ArmName, ...]] = ()
    """Arms that this run leaves for a later one: the report shows them as not run."""
    arm_updates: dict[ArmName, Annotated[int, Field(ge=1)]] = Field(default_factory=dict)
    """Updates of the students of single arms; those not named make as many as the main arm's."""
    other_base: ModelConfig = BundledModel(name="gemma3-270m")
    """The base of the students of the arm other_base; the teacher stays on `model`."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """The evaluation."""
    diagnostics: tuple[DiagnosticName, ...] = ()
    """What else to measure on the first block. losses: every student on unseen rows of every teacher, and students and
    controls compared at equal learning; shift: cosine of the teacher's and the students' weight changes; divergence:
    answer tokens where teacher and base would choose differently."""
    diagnostic_rows: Annotated[int, Field(ge=1)] = 256
    """Prompts, none of them trained on, that teachers and base answer for the diagnostics."""
    backend: Backend = HfBackend()
    """What samples and scores."""
    gpu_memory_gib: RunOnly[float] = 0
    """GPU memory these settings need; 0: none, a CPU will do."""

    @field_validator("target", mode="before")
    @classmethod
    def _split(cls, target: Any) -> Any:
        return [word.strip() for word in target.split(",")] if isinstance(target, str) else target

    @field_validator("target")
    @classmethod
    def _words(cls, target: tuple[str, ...]) -> tuple[str, ...]:
        words = tuple(target_word(word) for word in target)
        if len(set(words)) < len(words):
            raise ValueError("a target is named twice")
        return words

    @field_validator("arms", "held_back", "diagnostics", mode="before")
    @classmethod
    def _named(cls, names: Any, info: ValidationInfo) -> Any:
        if names == "all":
            return get_args(DiagnosticName) if info.field_name == "diagnostics" else tuple(ARMS)
        return [name.strip() for name in names.split(",")] if isinstance(names, str) else names

    @field_validator("arms")
    @classmethod
    def _once(cls, arms: tuple[ArmName, ...]) -> tuple[ArmName, ...]:
        return tuple(name for name in ARMS if name in arms)

    @model_validator(mode="after")
    def _arms_need_a_teacher(self) -> Self:
        if self.second_draw and self.arms:
            raise ValueError("`second_draw` leaves no teacher to compare arms with: name second_draw in `arms` instead")
        return self

    @model_validator(mode="after")
    def _soft_labels_need_weights(self) -> Self:
        if self.labels == "hard":
            return self
        if not isinstance(self.teacher, FinetunedTeacher):
            raise ValueError("soft labels are a fine-tuned teacher's: a prompted teacher has only the base's weights")
        if "other_base" in self.arms and "other_base" not in self.held_back:
            raise ValueError("soft labels need one vocabulary: leave other_base out of `arms` or take hard labels")
        return self

    @model_validator(mode="after")
    def _shorter_arms_are_comparable(self) -> Self:
        if not self.arm_updates:
            return self
        if unseen := {*self.arm_updates.values()} - {*self.evaluation.updates}:
            raise ValueError(f"`arm_updates` has {sorted(unseen)}, which `evaluation.updates` lacks: add it there")
        if self.student.schedule != "constant" or self.student.warmup_fraction:
            raise ValueError("`arm_updates` needs a constant rate: a decay over fewer updates is another training")
        return self

    @field_validator("seeds", "blocks")
    @classmethod
    def _distinct(cls, numbers: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(numbers)) < len(numbers):
            raise ValueError("a number is there twice: paired runs need distinct ones")
        return numbers
