"""What a student is asked behind HTTP: rows of its task, and questions that bring choices of their own."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sinkd_llm.answering.answer_rows import as_record
from sinkd_llm.answering.calibration import NONE
from sinkd_llm.answering.student import Answer, Student, chosen
from sinkd_llm.errors import InputError, NonFiniteError
from sinkd_llm.tasks.rendering import Example, RowRenderer
from sinkd_llm.tasks.unlabelled import unlabelled_example

# A question is a row of this task: what is refused of the prompt and choices of a row is refused of a question too.
_QUESTION = {
    "task": "question",
    "output_type": "multiple_choice",
    "doc_to_text": "prompt",
    "doc_to_choice": "choices",
    "doc_to_target": "label",
}
_RENDERER = RowRenderer(_QUESTION, dict.fromkeys(_QUESTION, Path("the question")))


@dataclass(frozen=True)
class Asked:
    """
    One row of a request.

    Args:
        id (`str` or `int`): of its answer.
        example ([`Example`]): the row as the model reads it.
        own_choices (`bool`): whether it brings its choices, and is none of the student's task.
    """

    id: str | int
    example: Example
    own_choices: bool = False


def question_example(prompt: str, choices: Sequence[str], where: str) -> Example:
    """
    A question with choices of its own, as the model reads it: the choices follow the prompt after a space.

    Args:
        prompt (`str`): all that the model reads before the answer.
        choices (sequence of `str`): the possible answers.
        where (`str`): a name for messages.

    Raises:
        InputError: for an empty prompt, and choices that are empty or equal.
    """
    row = {"prompt": prompt, "choices": list(choices)}
    return unlabelled_example(row, where, 0, _RENDERER, "question", {"prompt"})


def answer_records(student: Student, rows: Sequence[Asked]) -> list[dict[str, Any]]:
    """
    The answers to rows that are read together, as they are sent.

    A calibration and a route speak of the rows of the student's task: the answers to other questions have the
    probabilities that the model gives, and no decision.

    Args:
        student ([`Student`]): who answers.
        rows (sequence of [`Asked`]): of any requests.

    Returns:
        `list[dict]`: see [`as_record`], with `calibrated` (`bool`) where there are probabilities.
    """
    found: dict[int, Answer] = {}
    for own_choices in (False, True):
        places = [i for i, row in enumerate(rows) if row.own_choices is own_choices]
        if not places:
            continue
        ids, examples = [rows[i].id for i in places], [rows[i].example for i in places]
        answers = _to_questions(student, ids, examples) if own_choices else student.answer_batch(ids, examples)
        found |= zip(places, answers, strict=True)
    calibrated = student.facts.calibration is not None
    records = []
    for i, row in enumerate(rows):
        record = as_record(found[i])
        if found[i].probability is not None:
            record["calibrated"] = calibrated and not row.own_choices
        records.append(record)
    return records


def _to_questions(student: Student, ids: Sequence[str | int], examples: Sequence[Example]) -> list[Answer]:
    probabilities_NC = NONE.apply(student.log_probabilities(examples))
    return [
        chosen(name, [choice.removeprefix(_RENDERER.delimiter) for choice in example.choices], probabilities)
        for name, example, probabilities in zip(ids, examples, probabilities_NC, strict=True)
    ]


def warm_up(student: Student) -> None:
    """
    A first answer, which takes longer than others: libraries choose kernels and claim memory.

    Args:
        student ([`Student`]): of any kind.
    """
    task = student.task
    text, text_pair = ("Ready?" if name in task.text_columns else None for name in ("text", "text_pair"))
    choices = () if student.generates else task.choices or (" yes", " no")
    example = Example("the first row", "Ready?", choices, None, "", text=text, text_pair=text_pair)
    try:
        answer_records(student, [Asked(0, example)])
    except NonFiniteError:
        raise
    except InputError:
        if task.choices is not None or student.generates:
            raise
        # The choices vary from row to row, and these are none of this student's.
