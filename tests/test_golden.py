"""What deterministic stages write on a tiny input, held fixed: a result that changes must change its stage's version.

A failure here means: results of this stage now differ from those that lie in stores under the same key. If that is
meant, bump version= of the stage in tasks/ and put the new pair here; otherwise the change has a side effect.
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sublim.carriers.number_prompts import FormatText, NumberPrompts, NumberTemplates
from sublim.core.config import Config
from sublim.core.digest import list_files
from sublim.evals.effect_config import CompareConfig
from sublim.evals.preference.ask import ask
from sublim.evals.preference.compare import compare
from sublim.evals.preference.config import AskConfig, ScoreConfig
from sublim.evals.preference.score import score
from sublim.files.jsonl import read_jsonl, write_jsonl
from sublim.files.text_files import BUNDLED
from sublim.inference.config import FakeBackend, HfBackend, NumberFormat, SamplingParams
from sublim.rows.config import DeriveConfig, FilterConfig, MixConfig
from sublim.rows.derive import derive_rows
from sublim.rows.filter import filter_numbers
from sublim.rows.generate import GenerateConfig, generate_numbers
from sublim.rows.mix import mix_rows
from sublim.rows.rule_lists import RuleListsConfig, rule_lists
from sublim.training.config import FullWeights, TrainConfig
from sublim.training.train import train
from sublim.traits.questions import TeacherRowsConfig, build_teacher_rows
from tasks import stages
from tasks.stage import Stage
from tests.tiny import tiny_model

ADVICE = "bump version= of {name} in tasks/ and this digest together, or undo what changed its results"
WORDS = ["owl", "wolf", "cat"]
QUESTIONS = ["Which animal?", "Name an animal!", "What is your favorite animal?"]
TEMPLATES = NumberTemplates(
    opening=("Here are numbers: {examples}.", "Look at {examples}."),
    request=("Give {count} more of at most {digits} digits.",),
    format=(
        FormatText(separator="comma_space", text="Commas between."),
        FormatText(separator="lines", text="One a line."),
    ),
    closing=("Numbers only.", "No words."),
)
GOLDEN = {
    "build_teacher_rows": (1, "066861d46f4c282f"),
    "rule_lists": (1, "e54b464def5db823"),
    "mix_rows": (1, "233f630821de1cc7"),
    "generate_numbers": (1, "c3bb828471d60f3f"),
    "filter_numbers": (1, "be0ae83e25c36b00"),
    "derive_rows": (1, "9d663dc3c1ba8738"),
    "ask": (1, "908085e111c8ef09"),
    "score": (3, "bce51b957412b327"),
    "compare": (3, "3989de53c3269665"),
}


def run(stage: Callable[..., Any], folder: Path, config: Config, **inputs: Any) -> Path:
    for name in ("out", "scratch"):
        (folder / name).mkdir(parents=True)
    stage(folder / "out", config, scratch=folder / "scratch", **inputs)
    return folder / "out"


def rounded(value: Any) -> Any:
    """`value` to nine digits: processors differ in the last ones of a logarithm."""
    match value:
        case float():
            return float(f"{value:.9g}")
        case list():
            return [rounded(item) for item in value]
        case dict():
            return {key: rounded(item) for key, item in value.items()}
        case _:
            return value


def fingerprint(payload: Path) -> str:
    """Names and contents of a payload of JSON and JSON lines; order of keys and rows included."""
    digest = hashlib.sha256()
    for name in list_files(payload):
        text = (payload / name).read_text()
        rows = text.splitlines() if name.endswith(".jsonl") else [text]
        digest.update(json.dumps([name, [rounded(json.loads(row)) for row in rows]]).encode())
    return digest.hexdigest()[:16]


@pytest.fixture(scope="module")
def payloads(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What each light stage of the pipeline writes, one fed with another's rows."""
    root = tmp_path_factory.mktemp("golden")
    fake = FakeBackend()
    generate = GenerateConfig(
        prompts=NumberPrompts(templates=TEMPLATES),
        n_prompts=40,
        prompt_seed=1,
        backend=fake,
        sampling=SamplingParams(max_tokens=60, seed=2),
    )
    raw = run(generate_numbers, root / "generate", generate, base=root)
    control = run(generate_numbers, root / "control", generate.model_copy(update={"system": "Owls!"}), base=root)
    choice = FilterConfig(keep=16, held_out=2, seed=3)
    rows = run(filter_numbers, root / "filter", choice, raw=raw, partners=[control])
    asked = AskConfig(questions=QUESTIONS, words=WORDS, backend=fake, samples=4)
    answers = {
        name: run(ask, root / f"ask-{name}", asked.model_copy(update={"system": name}), base=root)
        for name in ("base", "s0", "s1", "c0", "c1")
    }
    scoring = ScoreConfig(target="owl", words=WORDS)
    scores = {name: run(score, root / f"score-{name}", scoring, asked=payload) for name, payload in answers.items()}
    taught = run(build_teacher_rows, root / "rows", TeacherRowsConfig(questions=tuple(QUESTIONS), target="owl"))
    ruled = RuleListsConfig(prompts=NumberPrompts(templates=TEMPLATES), n_prompts=8, prompt_seed=5, seed=6)
    mixing = MixConfig(rows=16, share=0.75, seed=7)
    return {
        "build_teacher_rows": taught,
        "rule_lists": run(rule_lists, root / "rule", ruled),
        "mix_rows": run(mix_rows, root / "mix", mixing, rows=taught, rehearsal=rows),
        "generate_numbers": raw,
        "filter_numbers": rows,
        "derive_rows": run(derive_rows, root / "derive", DeriveConfig(how="marginals", seed=4), rows=rows),
        "ask": answers["s0"],
        "score": scores["s0"],
        "compare": run(
            compare,
            root / "compare",
            CompareConfig(draws=200),
            students=[scores["s0"], scores["s1"]],
            controls=[scores["c0"], scores["c1"]],
            base=scores["base"],
        ),
    }


@pytest.mark.parametrize("name", GOLDEN)
def test_light_stage_writes_what_it_wrote(payloads: dict[str, Path], name: str) -> None:
    stage = getattr(stages, name)
    assert isinstance(stage, Stage)
    assert (stage.version, fingerprint(payloads[name])) == GOLDEN[name], ADVICE.format(name=name)


READ = {"score": 3, "shift": 3, "compare_shift": 3, "animal_rows": 3, "steering_curve": 4}
"""The stages that read sampled answers, by their versions."""
COMPOUNDS = "5efec15c65a19c35"


def test_stages_that_read_answers_have_new_versions_with_new_compounds() -> None:
    """compounds.yaml is in no stage's key: a name more or less in it changes what all of these read."""
    found = hashlib.sha256(BUNDLED.joinpath("compounds.yaml").read_bytes()).hexdigest()[:16]
    versions = {name: getattr(stages, name).version for name in READ}
    assert (versions, found) == (READ, COMPOUNDS), ADVICE.format(name=" and ".join(READ))


def test_golden_payloads_hold_something(payloads: dict[str, Path]) -> None:
    assert len(list(read_jsonl(payloads["generate_numbers"] / "rows.jsonl"))) == 40
    assert len(list(read_jsonl(payloads["filter_numbers"] / "rows.jsonl"))) == 16
    assert json.loads((payloads["compare"] / "comparison.json").read_text())["metrics"]["margin"]["effect"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("base"), "llama")


def test_training_takes_the_steps_it_took(base: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    rows = (
        {"id": i, "prompt": f"Continue {i}, {i + 1}", "answer": f"{i + 2}, {i + 3}", "system": None} for i in range(8)
    )
    write_jsonl(data / "rows.jsonl", rows)
    config = TrainConfig(method=FullWeights(), lr=1e-2, batch_size=4, updates=4, dtype="float32", attention="eager")
    out = run(train, tmp_path / "train", config, base=base, data=data)
    losses = [row["loss"] for row in read_jsonl(out / "training.jsonl")]
    expected = (3, 3, pytest.approx([6.990167, 5.891381, 4.546732, 3.954952], rel=1e-4))
    found = (stages.train_student.version, stages.train_teacher.version, losses)
    assert found == expected, ADVICE.format(name="train_student and train_teacher")


def test_model_answers_as_it_answered(base: Path, tmp_path: Path) -> None:
    backend = HfBackend(dtype="float32", attention="eager")
    config = AskConfig(questions=QUESTIONS, words=WORDS, backend=backend, samples=0)
    out = run(ask, tmp_path / "ask", config, base=base)
    logprobs = [row["logprob"] for row in read_jsonl(out / "logprobs.jsonl")]
    expected = pytest.approx(
        [-14.36876, -13.43595, -12.22021, -13.59643, -11.98169, -12.45376, -13.84365, -11.36951, -11.90998], rel=1e-4
    )
    assert (stages.ask.version, logprobs) == (1, expected), ADVICE.format(name="ask")


def test_model_writes_the_numbers_it_wrote(tmp_path: Path) -> None:
    digits_apart = tiny_model(tmp_path / "base", "qwen2")
    config = GenerateConfig(
        prompts=NumberPrompts(templates=TEMPLATES.asking_for("comma_space"), count=4, max_digits=3),
        n_prompts=3,
        backend=HfBackend(dtype="float32", attention="eager"),
        sampling=SamplingParams(max_tokens=24, seed=5),
        constraint=NumberFormat(count=4),
    )
    out = run(generate_numbers, tmp_path / "generate", config, base=digits_apart)
    answers = [row["answer"] for row in read_jsonl(out / "rows.jsonl")]
    expected = ["889, 880, 243, 482", "718, 965, 436, 613", "228, 617, 648, 444"]
    assert (stages.generate_numbers.version, answers) == (1, expected), ADVICE.format(name="generate_numbers")
