"""The answer choices of a data set's rows: which there are, as which tokens, and whether those tell them apart."""

import logging
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch

from sinkd_llm.errors import InputError
from sinkd_llm.inputs.row_checks import Row, row_name
from sinkd_llm.values import shown

if TYPE_CHECKING:
    from datasets import Dataset

    from sinkd_llm.inputs.contract import RowTokenizer

logger = logging.getLogger(__name__)

# Rows with choices of their own that are looked at before all are tokenised.
SAMPLE = 200
# An answer's tokens depend on the prompt's last word, if at all.
_TAIL = 32


def class_names(dataset: Any) -> tuple[str, ...] | None:
    """
    The classes that a classification head needs for these rows, or `None` if they do not agree on any.

    One for each answer choice; a single one, `"value"`, where the choices stand for numbers (a column `target`).
    """
    columns = getattr(dataset, "column_names", None)
    if not isinstance(columns, list) or "choices" not in columns:
        return None
    if "target" in columns:
        return ("value",)
    sets = choice_sets(dataset)
    return tuple(choice.strip() for choice in next(iter(sets))) if len(sets) == 1 else None


def choice_sets(dataset: "Dataset") -> set[tuple[str, ...]]:
    """
    The different lists of choices that the rows have.

    Raises:
        InputError: if the column `choices` holds anything but lists of texts.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    # In Arrow, for as Python lists the rows of a large task take ten seconds.
    separator = "\x1f"
    joined: set[str] = set()
    start = 0
    for table in dataset.select_columns("choices").with_format("arrow").iter(batch_size=10_000):
        column = table["choices"]
        is_text = pa.types.is_list(column.type) or pa.types.is_large_list(column.type)
        is_text = is_text and (
            pa.types.is_string(column.type.value_type) or pa.types.is_large_string(column.type.value_type)
        )
        # A null among the texts of a row makes the whole row null.
        texts = pc.unique(pc.binary_join(column, separator)) if is_text else None
        if texts is None or texts.null_count:
            _refuse_other_choices(dataset, start)
        else:
            joined.update(texts.to_pylist())
        start += len(table)
    return {tuple(text.split(separator)) for text in joined}


def _refuse_other_choices(dataset: "Dataset", start: int) -> None:
    for index in range(start, len(dataset)):
        row = dataset[index]
        choices = row["choices"]
        if not isinstance(choices, list) or not all(isinstance(choice, str) for choice in choices):
            raise InputError(
                f"The choices of {row_name(row, index)} are {shown(choices)}; give a list of texts in every row."
            )


def rows_of_choices(dataset: "Dataset", sets: set[tuple[str, ...]]) -> list[Row]:
    """Rows to look at how their choices are tokenised: the first one if all have the same choices, else a sample."""
    if len(sets) == 1:
        return [dataset[0]]
    return [dataset[index] for index in range(0, len(dataset), -(-len(dataset) // SAMPLE))]


def check_choice_tokens(sets: set[tuple[str, ...]], rows: Sequence[Row], answer_tokenizer: "RowTokenizer") -> None:
    """
    Refuses choices that are the same tokens, as they follow the prompt of a row: no model can tell them apart.

    Args:
        sets (`set[tuple[str, ...]]`): the different lists of choices.
        rows (`Sequence[dict]`): some rows, see [`rows_of_choices`].
        answer_tokenizer ([`RowTokenizer`]): how the rows are read.

    Raises:
        InputError: if all rows have the same choices, naming two of them. A warning counts rows with choices of their
            own, and names a choice that begins another one and is thus never less likely.
    """
    equal: list[tuple[Row, str, str]] = []
    for row, answers_ids in _answers(rows, answer_tokenizer):
        seen: dict[tuple[int, ...], str] = {}
        for choice, ids in zip(row["choices"], map(tuple, answers_ids), strict=True):
            if ids in seen:
                equal.append((row, seen[ids].strip(), choice.strip()))
                break
            seen[ids] = choice
        if len(sets) == 1:
            _warn_of_beginnings(seen)
    if not equal:
        return
    row, first, second = equal[0]
    if len(sets) == 1:
        raise InputError(
            f"The choices {shown(first)} and {shown(second)} are the same tokens in this tokenizer, so that no model "
            "can tell them apart; choose other words in doc_to_choice."
        )
    logger.warning(
        "%d of %d rows that were looked at have two choices that are the same tokens, so that no model can tell them "
        "apart: %r and %r of %s.",
        len(equal),
        len(rows),
        first[:60],
        second[:60],
        row_name(row, 0),
    )


def _warn_of_beginnings(choices: dict[tuple[int, ...], str]) -> None:
    for ids, choice in choices.items():
        for n in range(1, len(ids)):
            if ids[:n] in choices:
                logger.warning(
                    "The choice %r begins the choice %r, token by token, so that it is always at least as likely and "
                    "acc never chooses the longer one; add_eos closes both.",
                    choices[ids[:n]].strip()[:60],
                    choice.strip()[:60],
                )
                return


def verbalizer_ids(dataset: "Dataset", answer_tokenizer: "RowTokenizer") -> torch.Tensor:
    """
    Sorted ids of all tokens of the answer choices, for `vocabulary="verbalizers"`: `[K]`.

    Raises:
        InputError: if the rows have no choices, or not the same ones; if two one-word choices begin with the same
            token, so that the first answer token, restricted to these ids, says nothing of them.
    """
    if "choices" not in dataset.column_names:
        raise InputError(
            'vocabulary="verbalizers" needs rows with answer choices, but the data set has none; use '
            'vocabulary="full".'
        )
    if (count := len(choice_sets(dataset))) != 1:
        raise InputError(
            'vocabulary="verbalizers" needs the same answer choices in every row, but the data set has '
            f'{count} different lists; use vocabulary="full".'
        )
    ids: set[int] = set()
    for row, answers_ids in _answers(_rows_by_tail(dataset), answer_tokenizer):
        if not ids:
            _check_first_tokens(row["choices"], answers_ids, answer_tokenizer)
        ids.update(token for answer in answers_ids for token in answer)
    return torch.tensor(sorted(ids))


def _check_first_tokens(
    choices: Sequence[str], answers_ids: Sequence[Sequence[int]], answer_tokenizer: "RowTokenizer"
) -> None:
    # Several words and numbers are ranked by all of their tokens anyway.
    first: dict[int, str] = {}
    for choice, ids in zip(choices, answers_ids, strict=True):
        word = choice.strip()
        if any(character.isspace() or character.isdigit() for character in word):
            continue
        if ids[0] in first:
            shared = answer_tokenizer.tokenizer.decode([ids[0]])
            raise InputError(
                f"The choices {shown(first[ids[0]])} and {shown(word)} begin with the same token {shared!r} in this "
                'tokenizer, so vocabulary="verbalizers" cannot tell them apart at the first answer token; choose '
                'other words in doc_to_choice, or vocabulary="full".'
            )
        first[ids[0]] = word


def _rows_by_tail(dataset: "Dataset") -> list[Row]:
    """A row for each end of a prompt: a choice may be other tokens after another end."""
    tails: dict[str, int] = {}
    for index, prompt in enumerate(dataset["prompt"]):
        tail = prompt[-_TAIL:] if isinstance(prompt, str) else ""
        tails.setdefault(tail, index)
    return [dataset[index] for index in tails.values()]


def _answers(rows: Sequence[Row], answer_tokenizer: "RowTokenizer") -> Iterator[tuple[Row, list[list[int]]]]:
    """Each row, and the tokens of its choices as they follow its prompt, whatever the row's label and length."""
    for start in range(0, len(rows), 1_000):
        batch = rows[start : start + 1_000]
        yield from zip(batch, answer_tokenizer.choice_ids(batch, start), strict=True)
