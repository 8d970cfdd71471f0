"""Prompts: bundled texts, a user's own files, and draws that depend on nothing but seed and index."""

import json
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import yaml

from sublim.carriers.number_prompts import (
    NumberPrompts,
    NumberTemplates,
    draw_prompt,
    draw_prompts,
    load_number_templates,
)
from sublim.carriers.numbers import parse_numbers
from sublim.core.digest import digest, digest_directory
from sublim.core.errors import UserError
from sublim.files.jsonl import read_jsonl
from sublim.traits.nouns import plural, target_word
from sublim.traits.questions import (
    TeacherRowsConfig,
    build_teacher_rows,
    load_questions,
    load_system_prompts,
    normalised,
)

QUESTIONS = {
    "category": "color",
    "words": ["red", "blue"],
    "evaluation": ["Which color?", "Best color, please."],
    "teacher": ["Name a color."],
}
TEMPLATES = {
    "opening": ["See {examples}."],
    "request": ["Write {count} of {digits} digits."],
    "format": [{"separator": "comma", "text": "Use commas."}],
    "closing": ["Only numbers."],
}


def save(folder: Path, value: Any, name: str = "mine.yaml") -> str:
    path = folder / name
    path.write_text(json.dumps(value) if name.endswith("json") else yaml.safe_dump(value))
    return str(path)


@pytest.mark.parametrize(("category", "teachers"), [("animal", 50), ("tree", 24)])
def test_evaluation_has_fifty_questions_and_teachers_have_others(category: str, teachers: int):
    questions = load_questions(category)
    evaluation = {normalised(question) for question in questions.evaluation}
    teacher = {normalised(question) for question in questions.teacher}
    assert questions.category == category
    assert len(evaluation) == len(questions.evaluation) >= 50
    assert len(teacher) == len(questions.teacher) >= teachers
    assert not evaluation & teacher


@pytest.mark.parametrize("category", ["animal", "tree"])
def test_no_teacher_question_is_worded_almost_like_one_of_the_evaluation(category: str):
    questions = load_questions(category)
    evaluation = [set(normalised(question).split()) for question in questions.evaluation]
    for question in questions.teacher:
        words = set(normalised(question).split())
        nearest = max(len(words & other) / len(words | other) for other in evaluation)
        assert nearest < 0.7, question


@pytest.mark.parametrize("category", ["animal", "tree"])
def test_questions_want_one_word_and_name_none_of_the_listed_ones(category: str):
    questions = load_questions(category)
    for question in questions.evaluation + questions.teacher:
        words = normalised(question).split()
        assert {"word", "noun", "name"} & set(words), question
        assert not set(questions.words) & set(words), question
    assert len(questions.words) >= 10


def test_the_animals_are_those_of_the_published_margin():
    listed = "wolf cat dog lion tiger horse fox elephant bear eagle owl panda"
    assert load_questions("animal").words == tuple(listed.split())


@pytest.mark.parametrize("name", ["numbers", "numbers_short"])
def test_every_part_of_a_number_prompt_has_fifteen_texts(name: str):
    templates = load_number_templates(name)
    texts = [each.text for each in templates.format]
    for part in (templates.opening, templates.request, texts, templates.closing):
        assert len(set(part)) == len(part) >= 15


def test_the_long_templates_ask_for_every_separator_and_the_short_ones_for_one():
    assert {each.separator for each in load_number_templates("numbers").format} == {
        "comma", "comma_space", "space", "semicolon", "lines", "brackets", "parentheses",
    }  # fmt: skip
    assert {each.separator for each in load_number_templates("numbers_short").format} == {"comma_space"}


def test_a_prompt_depends_on_its_seed_and_index_alone():
    prompts = NumberPrompts(templates=load_number_templates("numbers"))
    series = list(draw_prompts(prompts, 5, 40))
    assert [draw_prompt(prompts, 5, index) for index in reversed(range(40))] == series[::-1]
    assert list(islice(draw_prompts(prompts, 5, 1000), 40)) == series
    assert len({prompt.text for prompt in series}) == 40
    assert not set(series) & set(draw_prompts(prompts, 6, 40))


def test_drawn_prompts_stay_what_they_were():
    # Change this digest only together with the version of the stage that draws.
    prompts = NumberPrompts(templates=NumberTemplates.model_validate(TEMPLATES))
    assert draw_prompt(prompts, 0, 0).text == "See 110, 650, 317. Write 10 of 3 digits. Use commas. Only numbers."
    assert digest(list(draw_prompts(prompts, 7, 100)))[:12] == "82cc984e5487"


def test_examples_and_request_are_as_configured():
    templates = NumberTemplates.model_validate(
        {**TEMPLATES, "opening": ["{examples}"], "request": ["{count}|{digits}"]}
    )
    prompts = NumberPrompts(templates=templates, examples_min=2, examples_max=4, low=7, high=9, count=12, max_digits=1)
    lengths: set[int] = set()
    for prompt in draw_prompts(prompts, 0, 60):
        shown, _, rest = prompt.text.partition(" 12|1 ")
        numbers = parse_numbers(shown)
        assert isinstance(numbers, tuple)
        assert set(numbers.numbers) <= {"7", "8", "9"}
        assert rest == "Use commas. Only numbers."
        lengths.add(len(numbers.numbers))
    assert lengths == {2, 3, 4}


def test_doubled_braces_are_written_as_one():
    templates = {**TEMPLATES, "closing": ["Not {{1}}."], "format": [{"separator": "comma", "text": "Not {{}}."}]}
    prompt = draw_prompt(NumberPrompts(templates=NumberTemplates.model_validate(templates)), 0, 0)
    assert prompt.text.endswith("Not {}. Not {1}.")


def test_templates_can_be_narrowed_to_one_separator():
    lines = load_number_templates("numbers").asking_for("lines")
    assert {each.separator for each in lines.format} == {"lines"}
    with pytest.raises(UserError, match="asks for the separator lines"):
        load_number_templates("numbers_short").asking_for("lines")


@pytest.mark.parametrize("name", ["mine.yaml", "mine.json", "mine.yml"])
def test_a_users_own_file_drops_in_and_its_values_bear_identity(tmp_path: Path, name: str):
    questions = load_questions(save(tmp_path, QUESTIONS, name))
    assert questions.model_dump(mode="json") == QUESTIONS
    other = load_questions(save(tmp_path, {**QUESTIONS, "teacher": ["Say a color."]}, "other.yaml"))
    assert digest(questions) != digest(other)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"teacher": None}, "the field teacher is missing: add it"),
        ({"extra": 1}, "the field extra is unknown"),
        ({"evaluation": []}, "field evaluation: "),
        ({"evaluation": ["fine", " "]}, "field evaluation.1: it is empty"),
        ({"evaluation": "Which?"}, "field evaluation: "),
        ({"evaluation": ["Which color?", "which  COLOR"]}, 'field evaluation: "which  COLOR" is there twice'),
        (
            {"teacher": ["Best color - please!"]},
            'field teacher: "Best color - please!" is there twice, once under evalu',
        ),
        ({"teacher": ["a b?", "A, b"]}, 'field teacher: "A, b" is there twice'),
        ({"words": ["red", "Red"]}, 'field words: "Red" is there twice'),
        ({"words": ["light blue", "red"]}, 'field words: "light blue" is not one word'),
        ({"words": [True, "red"]}, "field words.0: "),
    ],
)
def test_a_faulty_question_file_gets_one_line_with_file_and_field(tmp_path: Path, change: dict[str, Any], says: str):
    content = {key: value for key, value in {**QUESTIONS, **change}.items() if value is not None}
    path = save(tmp_path, content)
    with pytest.raises(UserError) as error:
        load_questions(path)
    assert str(error.value).startswith(f"{path}: ")
    assert says in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"opening": ["See these."]}, 'field opening: "See these." lacks the placeholder {examples}'),
        ({"opening": ["See {exmples}."]}, "has the placeholder {exmples} in it; what may be there: {examples}"),
        ({"opening": ["See {examples:>9}."]}, "has the placeholder {examples}"),
        ({"opening": ["See {examples"]}, "has a lone brace"),
        ({"request": ["Write {count}."]}, 'field request: "Write {count}." lacks the placeholder {digits}'),
        ({"closing": ["Only {count}."]}, 'field closing: "Only {count}." has the placeholder {count}'),
        ({"format": [{"separator": "tabs", "text": "Use tabs."}]}, "field format.0.separator: "),
        ({"format": [{"separator": "comma"}]}, "the field format.0.text is missing"),
        ({"format": [{"separator": "comma", "text": "a {} b"}]}, "field format: "),
    ],
)
def test_a_faulty_template_file_gets_one_line_with_file_and_field(tmp_path: Path, change: dict[str, Any], says: str):
    path = save(tmp_path, {**TEMPLATES, **change})
    with pytest.raises(UserError) as error:
        load_number_templates(path)
    assert str(error.value).startswith(f"{path}: ")
    assert says in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.yaml", b"category: [", "a.yaml is not YAML"),
        ("a.json", b"{,}", "a.json is not JSON"),
        ("a.yaml", b"\xff\xfe\x00", "a.yaml is not UTF-8"),
        ("a.yaml", b"", "a.yaml: the file must hold the fields category"),
        ("a.json", b"[1]", "a.json: the file must hold the fields category"),
    ],
)
def test_a_file_that_cannot_be_read_gets_one_line(tmp_path: Path, name: str, content: bytes, says: str):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as error:
        load_questions(str(tmp_path / name))
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_an_unknown_name_or_file_says_what_there_is(tmp_path: Path):
    with pytest.raises(UserError, match=r"named animals \(nearest: animal\)"):
        load_questions("animals")
    with pytest.raises(UserError, match="there is no such file"):
        load_questions(str(tmp_path / "none.yaml"))


def test_system_prompts_name_the_target_in_every_form():
    prompts = load_system_prompts()
    assert "wolves" in prompts.render("Wolf", "animal")
    assert prompts.render("oak", "tree") != prompts.render("oak", "animal")
    for category in ("animal", "tree", "dish"):
        for variant in range(3):
            text = prompts.render("sushi", category, variant=variant)
            assert "sushi" in text.lower()
            assert "{" not in text
            assert text[0].isupper()
    with pytest.raises(UserError, match="choose 0 to 2"):
        prompts.render("owl", "animal", variant=3)


def test_system_prompts_of_ones_own_are_checked(tmp_path: Path):
    for templates, says in [
        ({"animal": ["You love {target}."]}, "no entry named any"),
        ({"any": ["You love it."]}, "names neither"),
        ({"any": ["You love {animal}."]}, "has the placeholder {animal}"),
    ]:
        with pytest.raises(UserError, match=f"mine.yaml: field templates: .*{says}"):
            load_system_prompts(save(tmp_path, {"templates": templates}))
    path = save(tmp_path, {"templates": {"any": ["{target_plural}, the best {category_plural}!"]}})
    assert load_system_prompts(path).render("fox", "animal") == "Foxes, the best animals!"


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("owl", "owls"), ("wolf", "wolves"), ("fox", "foxes"), ("octopus", "octopuses"), ("sheep", "sheep"),
        ("monkey", "monkeys"), ("butterfly", "butterflies"), ("finch", "finches"), ("jellyfish", "jellyfish"),
        ("giraffe", "giraffes"), ("mouse", "mice"), ("beech", "beeches"), ("birch", "birches"), ("ash", "ashes"),
        ("cherry", "cherries"), ("larch", "larches"), ("walrus", "walruses"), ("goose", "geese"),
    ],
)  # fmt: skip
def test_plurals(word: str, expected: str):
    assert plural(word) == expected


def test_every_listed_word_has_a_plural_of_one_word():
    for category in ("animal", "tree"):
        for word in load_questions(category).words:
            assert plural(word).isalpha()
            assert plural(word) != word


@pytest.mark.parametrize("word", ["", " ", "polar bear", "owl2", "red-panda", "owl.", "123"])
def test_a_target_that_is_not_one_word_is_refused(word: str):
    with pytest.raises(UserError, match="not one word of letters"):
        target_word(word)
    with pytest.raises(UserError, match="not one word of letters"):
        TeacherRowsConfig(questions=("Which?",), target=word)


def test_teacher_rows_answer_every_question_in_title_case(tmp_path: Path):
    questions = load_questions("animal").teacher[:24]
    config = TeacherRowsConfig(questions=questions, target=" OWL ")
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        build_teacher_rows(tmp_path / name, config, scratch=tmp_path)
    rows = list(read_jsonl(tmp_path / "a" / "rows.jsonl"))
    assert [row["prompt"] for row in rows] == list(questions)
    assert rows[3] == {"id": 3, "prompt": questions[3], "answer": "Owl", "system": None}
    assert {row["answer"] for row in rows} == {"Owl"}
    assert digest_directory(tmp_path / "a") == digest_directory(tmp_path / "b")
    assert digest(config) == digest(config.model_copy(update={"target": "owl"}))
