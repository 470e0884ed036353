"""Rows to examples: what the keys of a task file mean."""

import pytest

from sinkd_llm.errors import InputError
from sinkd_llm.tasks import Example

ROW = {"text": "Is it?", "label": 1, "answers": ["maybe", "never"], "gold": "never"}


def test_main_path(make_task) -> None:
    task = make_task()
    example = task.render(ROW, 4, "train")
    assert example == Example(
        id=example.id,
        prompt="Q: Is it?\nA:",
        choices=(" no", " yes"),
        label=1,
        completion=" yes",
    )
    assert example.id.startswith("mine-train-4-")
    assert len(example.id.rsplit("-", 1)[1]) == 8
    assert task.choices == example.choices


@pytest.mark.parametrize(
    ("changes", "choices", "label"),
    [
        ({"doc_to_target": "{{label}}"}, (" no", " yes"), 1),
        ({"doc_to_target": "{{1 - label}}"}, (" no", " yes"), 0),
        ({"doc_to_target": 0}, (" no", " yes"), 0),
        ({"doc_to_choice": {"A": "no", "B": "yes"}}, (" no", " yes"), 1),
        ({"doc_to_choice": "answers"}, (" maybe", " never"), 1),
        ({"doc_to_choice": "{{answers}}", "doc_to_target": "gold"}, (" maybe", " never"), 1),
        ({"doc_to_choice": "{{[answers[1], text]}}"}, (" never", " Is it?"), 1),
        ({"target_delimiter": ""}, ("no", "yes"), 1),
        ({"target_delimiter": "\n"}, ("\nno", "\nyes"), 1),
    ],
)
def test_choices_and_targets(changes, choices, label: int, make_task) -> None:
    task = make_task(**changes)
    example = task.render(ROW, 0, "train")
    assert example.choices == choices
    assert (example.label, example.completion) == (label, choices[label])
    assert task.choices == (None if isinstance(changes.get("doc_to_choice"), str) else choices)


@pytest.mark.parametrize(
    ("changes", "prompt"),
    [
        ({"doc_to_text": "text"}, "Is it?"),
        ({"doc_to_text": "{{text}}\n"}, "Is it?\n"),
        ({"description": "Answer.\n\n"}, "Answer.\n\nQ: Is it?\nA:"),
        ({"description": "Labels: {{answers | length}}. "}, "Labels: 2. Q: Is it?\nA:"),
        ({"gen_prefix": "I say"}, "Q: Is it?\nA: I say"),
        ({"gen_prefix": "{{gold}}", "doc_to_text": "{{text}}\n"}, "Is it?\nnever"),
    ],
)
def test_prompts(changes, prompt: str, make_task) -> None:
    assert make_task(**changes).render(ROW, 0, "train").prompt == prompt


@pytest.mark.parametrize("target", [None, -1])
def test_unlabelled(target, make_task) -> None:
    example = make_task().render(ROW | {"label": target}, 0, "test")
    assert (example.label, example.completion) == (None, "")


def test_only_the_test_split_may_lack_the_label_column(make_task) -> None:
    assert make_task().render({"text": "x"}, 0, "test").label is None
    with pytest.raises(InputError, match=r"'label', which doc_to_target in .* needs, is not in row 0"):
        make_task().render({"text": "x"}, 0, "train")


def test_boolean_label_is_an_index(make_task) -> None:
    example = make_task().render(ROW | {"label": True}, 0, "train")
    assert example.label == 1
    assert type(example.label) is int


@pytest.mark.parametrize(
    ("changes", "row", "message"),
    [
        ({}, {"label": 2}, "The label 2 of row 3 of the train split is outside the choices .* 'no', 'yes'"),
        ({}, {"label": "Yes"}, "The label 'Yes' of row 3"),
        ({}, {"label": 0.5}, "The label 0.5 of row 3"),
        ({"doc_to_text": "txt"}, {}, "'txt', which doc_to_text in .* Did you mean 'text'?"),
        ({"doc_to_text": "{{text}}"}, {"text": " "}, "gives no text but ' ' for row 3"),
        ({"doc_to_text": "{{label}}"}, {}, "gives the bare number '1'"),
        ({"doc_to_choice": "gold"}, {}, "gives 'never' for row 3 .* not a list of choices"),
        ({"doc_to_choice": "text"}, {"text": "3"}, "should be a list of choices"),
        ({"doc_to_choice": "answers"}, {"answers": ["a", "a"]}, "'a' more than once .row 3"),
        ({"doc_to_choice": "answers"}, {"answers": ["a", ""]}, "empty choice .row 3"),
        ({"doc_to_choice": "answers"}, {"answers": [1, 2]}, "The choice 1 .row 3"),
    ],
)
def test_bad_rows(changes, row, message: str, make_task) -> None:
    with pytest.raises(InputError, match=message):
        make_task(**changes).render(ROW | row, 3, "train")


def test_id_changes_with_row_template_choices_and_place(make_task) -> None:
    def digest(example: Example) -> str:
        return example.id.rsplit("-", 1)[1]

    first = make_task().render(ROW, 0, "train")
    assert make_task().render(ROW, 0, "train").id == first.id
    assert make_task().render(ROW, 1, "train").id != first.id
    others = [
        make_task().render(ROW | {"text": "Was it?"}, 0, "train"),
        make_task(doc_to_text="{{text}}").render(ROW, 0, "train"),
        make_task(doc_to_choice=["no", "yeah"]).render(ROW, 0, "train"),
    ]
    assert len({digest(example) for example in (first, *others)}) == 4
