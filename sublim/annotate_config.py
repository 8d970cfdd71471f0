"""What features are sorted into, from which descriptions, and how a model is asked."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from sublim.config import Config, RunOnly
from sublim.inference import Backend, FakeBackend, HfBackend, OpenAIBackend, SamplingParams

CATEGORIES = {
    "animals": "living creatures other than people: species, pets, wildlife, what they do or have",
    "numbers": "digits, counting, quantities, arithmetic, dates written in figures, lists of numbers",
    "opinion": "liking, judgement, preference, feeling about something, praise or criticism",
    "none": "anything else",
}
EXAMPLES = (
    ("mentions of horses and riding", "animals"),
    ("two-digit figures in tables", "numbers"),
    ("phrases that call something wonderful or awful", "opinion"),
    ("names of rivers in Europe", "none"),
    ("bees and other insects", "animals"),
    ("the words first, second and third", "numbers"),
    ("speakers who say what they would rather do", "opinion"),
    ("closing brackets in program code", "none"),
)


class DescribedFeature(Config):
    """A feature with its description."""

    feature: Annotated[int, Field(ge=0)]
    """Its number in the SAE."""
    layer: Annotated[int, Field(ge=0)] | None = None
    """Its layer; null where that is not known."""
    description: Annotated[str, Field(min_length=1)]
    """What it is said to be."""


class Worked(Config):
    """A description that is shown with its category before the one that is asked about."""

    description: str
    category: str


class AnnotateConfig(Config):
    """Descriptions sorted into categories by a model."""

    features: tuple[DescribedFeature, ...] = ()
    """What to sort, besides the stage's `labels`."""
    only: tuple[Annotated[str, Field(pattern=r"^\d+_\d+$")], ...] = ()
    """Take these of the labels, as <layer>_<feature>; empty for every feature's chosen one."""
    layer: int | None = None
    """Layer of the labels, where they are of a single SAE."""
    categories: Annotated[dict[str, str], Field(min_length=2)] = CATEGORIES
    """Each with what belongs to it. One word each."""
    instruction: str = (
        "A feature of a language model has a short description. Say which of these kinds of text it is about:\n"
        "{categories}\nAnswer with one word: {names}."
    )
    """The opening of every chat."""
    question: str = "Description: {description}\nKind:"
    """What is asked of each description."""
    examples: tuple[Worked, ...] = tuple(Worked(description=text, category=kind) for text, kind in EXAMPLES)
    """Worked ones, as earlier turns of the chat; none of them should be among what is asked."""
    by: Literal["auto", "generation", "log-probs"] = "auto"
    """generation: the model writes, and the answer is read. log-probs: the likeliest of the categories, for small
    models that don't keep to a form. auto: generation behind a chat server, log-probs elsewhere."""
    calibrate: bool = True
    """With log-probs: minus the log-prob without a description, so that a word is not chosen for being common."""
    backend: Backend = HfBackend()
    """Who answers."""
    sampling: SamplingParams = SamplingParams(max_tokens=8, temperature=0.0)
    """How it writes: the likeliest tokens."""
    batch: RunOnly[Annotated[int, Field(ge=1)] | None] = None
    """Answers kept together; null for 32. A server's are kept one by one whatever this says."""

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if any(not name.isalpha() for name in self.categories):
            raise ValueError("a category is a single word")
        if strange := [each.category for each in self.examples if each.category not in self.categories]:
            raise ValueError(f"no category is called {strange[0]!r}: change categories and examples together")
        if self.sampling.n != 1:
            raise ValueError("a description is asked about once: sampling.n is 1")
        return self

    def resolved(self) -> Self:
        found = super().resolved()
        chat_server = isinstance(found.backend, OpenAIBackend) and found.backend.api == "chat"
        if found.by != "auto":
            return found
        return found.model_copy(update={"by": "generation" if chat_server else "log-probs"})

    @property
    def needs_base(self) -> bool:
        """Whether a model has to be given."""
        return not (
            isinstance(self.backend, FakeBackend)
            or (isinstance(self.backend, OpenAIBackend) and self.backend.api == "chat")
        )
