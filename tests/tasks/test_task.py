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
        ({"doc_to_choice": "gold"}, {}, "gives 'never' for row 3 .* not a list of texts"),
        ({"doc_to_choice": "text"}, {"text": "3"}, "should be a list of texts"),
        ({"doc_to_choice": "answers"}, {"answers": ["a", "a"]}, "'a' more than once .row 3"),
        ({"doc_to_choice": "answers"}, {"answers": ["a", "a "]}, "'a' more than once .row 3"),
        ({"doc_to_choice": "answers"}, {"answers": []}, "gives 0 choices .row 3"),
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


@pytest.fixture
def make_scored(make_task):
    """A task whose metrics need more than the choices."""
    return lambda **scoring: make_task(metadata={"metrics": ["em"], "scoring": scoring})


def test_scoring_columns(make_scored) -> None:
    task = make_scored(group="{{text}}-{{label}}", answers="answers", target="{{label / 4}}")
    assert task.scoring_columns == ("group", "answers", "target")
    example = task.render(ROW, 0, "train")
    assert (example.group, example.answers, example.target) == ("Is it?-1", ("maybe", "never"), 0.25)
    unlabelled = task.render(ROW | {"label": None, "answers": []}, 0, "test")
    assert (unlabelled.group, unlabelled.answers, unlabelled.target) == ("Is it?-None", (), None)
    assert make_scored(answers="{{[gold]}}").render(ROW, 0, "train").answers == ("never",)
    # They are no part of the text, so ids stay when a task gains them.
    assert make_scored().render(ROW, 0, "train").id == example.id


@pytest.mark.parametrize(
    ("scoring", "row", "message"),
    [
        ({"group": "grp"}, {}, "'grp', which metadata.scoring.group in .* needs, is not in row 3"),
        ({"answers": "answers"}, {"answers": []}, "metadata.scoring.answers in .* gives no answer for row 3"),
        ({"answers": "gold"}, {}, "metadata.scoring.answers in .* gives 'never' for row 3"),
        ({"target": "gold"}, {}, "metadata.scoring.target in .* gives 'never' for row 3 .* should be a number"),
        ({"target": "gold"}, {"gold": "nan"}, "gives 'nan' for row 3"),
    ],
)
def test_bad_scoring(scoring, row, message: str, make_scored) -> None:
    with pytest.raises(InputError, match=message):
        make_scored(**scoring).render(ROW | row, 3, "train")


def test_metrics_over_rows(make_scored, make_task) -> None:
    task = make_scored(group="text")
    with pytest.raises(
        InputError, match=r"metrics of the task 'mine' \(em\) need the columns group of the scored rows"
    ):
        task.compute_metrics([0, 1], [0, 1])
    assert task.compute_metrics([0, 1, 1], [0, 1, 0], rows={"group": ["a", "a", "b"]}) == {"em": 0.5}
    assert make_task().compute_metrics([0, 1], [0, 0]) == {"acc": 0.5}
    assert make_task().compute_metrics([0, 1], [0, 0], rows={"id": ["x", "y"]}) == {"acc": 0.5}


GENERATED = {"output_type": "generate_until", "doc_to_choice": None, "doc_to_target": "gold"}


def test_generation(make_task) -> None:
    task = make_task(**GENERATED, generation_kwargs={"until": ["\n"]})
    assert (task.output_type, task.choices, task.metric_names) == ("generate_until", None, ("rouge_l",))
    example = task.render(ROW, 0, "train")
    assert (example.prompt, example.completion) == ("Q: Is it?\nA:", " never")
    assert (example.choices, example.label) == ((), None)
    assert task.render(ROW | {"gold": "ever"}, 0, "train").id != example.id
    assert make_task(**GENERATED | {"doc_to_target": "{{gold}} 3"}).render(ROW, 0, "train").completion == " never 3"
    assert task.render({"text": "x"}, 0, "test").completion == ""
    assert task.compute_metrics([" never"], [" never, ever"]) == {"rouge_l": pytest.approx(2 / 3)}


@pytest.mark.parametrize(
    ("row", "message"), [({"gold": " "}, "gives no text but ' ' for row 0"), ({"gold": 3}, "gives no text but 3")]
)
def test_bad_generation_rows(row, message: str, make_task) -> None:
    with pytest.raises(InputError, match=message):
        make_task(**GENERATED).render(ROW | row, 0, "train")
    with pytest.raises(InputError, match="'gold', which doc_to_target"):
        make_task(**GENERATED).render({"text": "x"}, 0, "train")
