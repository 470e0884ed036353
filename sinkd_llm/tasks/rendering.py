"""An example, and how a row becomes one."""

import ast
import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sinkd_llm.errors import InputError
from sinkd_llm.tasks.labels import Target, is_missing
from sinkd_llm.tasks.template import Template
from sinkd_llm.values import check_text, plain, shown, without_text

# The split of rows whose labels are not looked at, nor what only scores need.
UNLABELLED = "unlabelled"


@dataclass(frozen=True)
class Example:
    """
    One row of a task, rendered.

    Args:
        id (`str`): task, split, index and a hash of the text, so that a changed row or template shows.
        prompt (`str`): what the model reads.
        choices (`tuple[str, ...]`): the possible answers, each with the delimiter in front (`" positive"`); none
            where the answer is generated.
        label (`int` or `None`): index of the gold choice; `None` for an unlabelled row, or where there are no choices.
        completion (`str`): the gold answer, with the delimiter in front; empty for an unlabelled row.
        group (`str`, *optional*): the question that the row is a part of, where the task scores whole questions.
        answers (`tuple[str, ...]`, *optional*): all right answers, where the task has several.
        target (`float`, *optional*): the gold number, where the choices stand for numbers.
        text, text_pair (`str`, *optional*): what an encoder with a classification head reads instead of the prompt.
        kept (`Mapping[str, str | None]`): columns of the data that the task keeps, as text; `None` for a null.
    """

    id: str
    prompt: str
    choices: tuple[str, ...]
    label: int | None
    completion: str
    group: str | None = None
    answers: tuple[str, ...] | None = None
    target: float | None = None
    text: str | None = None
    text_pair: str | None = None
    kept: Mapping[str, str | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Draft:
    """A row whose label is still to be read: labels are read together, see [`LabelReader`]."""

    row: Mapping[str, Any]
    index: int
    where: str
    prompt: str
    choices: tuple[str, ...]
    target: Target | None
    completion: str


class RowRenderer:
    """
    Renders the rows of a task by the keys of its file.

    Args:
        config (`Mapping[str, Any]`): the keys, checked.
        origins (`Mapping[str, Path]`): the file of each key, for messages.
        keep (sequence of `str`, *optional*): columns of the data that examples keep.
        id_column (`str`, *optional*): the column that holds a row's own id.

    Attributes:
        scoring_columns, text_columns: see [`Task`].
        choices (`tuple[str, ...]` or `None`): the choices of every row; `None` where they vary or there are none.

    Raises:
        InputError: for a template that is wrong whatever the row, and for wrong choices.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        origins: Mapping[str, Path],
        keep: Sequence[str] = (),
        id_column: str | None = None,
    ) -> None:
        self.config, self.origins = config, origins
        self.keep, self.id_column = tuple(keep), id_column
        metadata = config.get("metadata", {})
        self.delimiter: str = config.get("target_delimiter", " ")
        # Choices that are a column or a template may differ between the rows.
        self.varying: bool = isinstance(config.get("doc_to_choice"), str)
        self.ranked: bool = config["output_type"] == "multiple_choice"
        self.scoring_columns: tuple[str, ...] = tuple(metadata.get("scoring", {}))
        self.text_columns: tuple[str, ...] = ("text", "text_pair")[: len(metadata.get("texts", ()))]
        self.templates = self._read_templates()
        for template in self.templates.values():
            template.check()
        fixed = config.get("doc_to_choice")
        self.choices: tuple[str, ...] | None = None
        if isinstance(fixed, list | dict):
            words = fixed.values() if isinstance(fixed, dict) else fixed
            self.choices = self._checked_choices(list(words), f"{origins['doc_to_choice']}")

    def _read_templates(self) -> dict[str, Template]:
        keys = ("description", "doc_to_text", "doc_to_choice", "doc_to_target", "gen_prefix")
        templates = {
            key: Template(self.config[key], key, str(self.origins[key]))
            for key in keys
            if isinstance(self.config.get(key), str)
        }
        metadata = self.config.get("metadata", {})
        for name in self.scoring_columns:
            place = f"metadata.scoring.{name}"
            templates[name] = Template(metadata["scoring"][name], place, str(self.origins["metadata"]))
        for name, source in zip(self.text_columns, metadata.get("texts", ()), strict=False):
            templates[name] = Template(source, "metadata.texts", str(self.origins["metadata"]))
        return templates

    def draft(self, row: Mapping[str, Any], index: int, split: str, where: str) -> Draft:
        """Prompt and choices of a row, and what its label is read from."""
        prompt = self._prompt(row, where, split)
        if not self.ranked:
            return Draft(row, index, where, prompt, (), None, self._generated(row, split, where))
        choices = self.choices or self._row_choices(row, where)
        words = tuple(choice.removeprefix(self.delimiter) for choice in choices)
        return Draft(row, index, where, prompt, choices, Target(self._gold(row, split, where), words, where), "")

    def example(self, draft: Draft, task: str, split: str, label: int | None) -> Example:
        """The example of a draft whose label is known."""
        row, where, choices = draft.row, draft.where, draft.choices
        completion = draft.completion if label is None else choices[label]
        # Prompt and answers, so that a changed row or template changes the id.
        texts = (draft.prompt, *(choices or (completion,)))
        scored = self.scoring_columns if split != UNLABELLED else ()
        digest = hashlib.blake2b("\0".join(texts).encode(), digest_size=4).hexdigest()
        return Example(
            id=self._own_id(row, where) or f"{task}-{split}-{draft.index}-{digest}",
            prompt=draft.prompt,
            choices=choices,
            label=label,
            completion=completion,
            group=self._group(row, where) if "group" in scored else None,
            answers=self._answers(row, label, where) if "answers" in scored else None,
            target=self._target(row, label, where) if "target" in scored else None,
            **{name: self._text(name, row, where).strip() for name in self.text_columns},
            kept={name: _as_text(row.get(name)) for name in self.keep},
        )

    def _own_id(self, row: Mapping[str, Any], where: str) -> str | None:
        if self.id_column is None or self.id_column not in row:
            return None
        own = _as_text(row[self.id_column])
        if own is None:
            raise InputError(f"There is no id in the column {self.id_column!r} on {where}; give each row its own.")
        return check_text(own, f"the column {self.id_column!r}", where)

    def columns_read(self) -> set[str]:
        """The columns that a row's prompt, choices and texts are made of."""
        read: set[str] = set()
        for key, template in self.templates.items():
            if key == "doc_to_target" or key in self.scoring_columns:
                continue
            if template.has_markup:
                read |= template.columns()
            elif key not in ("description", "gen_prefix") and template.source.isidentifier():
                read.add(template.source)
        return read

    def target_column(self) -> str | None:
        """The column that the label is read from, if it is one alone."""
        template = self.templates.get("doc_to_target")
        if template is None:
            return None
        return template.lone_column() if template.has_markup else template.source

    def _value(self, key: str, row: Mapping[str, Any], where: str) -> Any:
        """A key that names a column gives its value; any other text is a template."""
        template = self.templates[key]
        if template.source in row:
            return plain(row[template.source])
        if not template.has_markup and template.source.isidentifier():
            raise template.missing_column(template.source, row, where)
        return template.render(row, where)

    def _text(self, key: str, row: Mapping[str, Any], where: str, words: bool = False) -> str:
        """As `_value`, as text; `words` for the keys that are often plain words: one word need not be a column."""
        template = self.templates[key]
        if words and template.source not in row:
            return template.render(row, where)
        value = self._value(key, row, where)
        if what := "a list" if isinstance(value, list | tuple | Mapping) else without_text(value):
            raise template.no_text(f"its column {template.source!r} is {what}", where)
        return check_text(value if isinstance(value, str) else str(value), template.place, where)

    def _group(self, row: Mapping[str, Any], where: str) -> str:
        # A name that no model reads: a null in it may be a word.
        template = self.templates["group"]
        return self._text("group", row, where) if not template.has_markup else template.render(row, where, "None")

    def _prompt(self, row: Mapping[str, Any], where: str, split: str) -> str:
        place = self.templates["doc_to_text"].place
        text = self._text("doc_to_text", row, where)
        if not text.strip():
            raise InputError(f"{place} gives no text but {text[:20]!r} for {where}.")
        if text.isdigit() and split != UNLABELLED:
            raise InputError(
                f"{place} gives the bare number {shown(text)} for {where}, which lm-evaluation-harness reads as the "
                "index of a choice; put words around it."
            )
        prefix = self._text("gen_prefix", row, where, words=True) if "gen_prefix" in self.templates else ""
        if prefix and not (text[-1].isspace() or prefix[0].isspace()):
            text += self.delimiter
        description = self._text("description", row, where, words=True) if "description" in self.templates else ""
        return description + text + prefix

    def _row_choices(self, row: Mapping[str, Any], where: str) -> tuple[str, ...]:
        return self._checked_choices(self._list("doc_to_choice", row, where), where)

    def _list(self, key: str, row: Mapping[str, Any], where: str) -> list[Any]:
        words = self._value(key, row, where)
        template = self.templates[key]
        if what := without_text(words):
            raise template.no_text(f"its column {template.source!r} is {what}", where)
        if isinstance(words, str):
            try:
                words = ast.literal_eval(words)
            except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
                if missing := sorted(template.columns() - set(row)):
                    raise template.missing_column(missing[0], row, where) from error
                raise InputError(
                    f"{template.place} gives {shown(words)} for {where}, which is not a list of texts; write it as "
                    '{{[choice1, choice2]}} or as ["no", "yes"].'
                ) from error
        if not isinstance(words, list | tuple):
            raise InputError(f"{template.place} gives {shown(words)} for {where}; it should be a list of texts.")
        return list(words)

    def _answers(self, row: Mapping[str, Any], label: int | None, where: str) -> tuple[str, ...]:
        template = self.templates["answers"]
        answers = self._list("answers", row, where)
        for answer in answers:
            if what := without_text(plain(answer)):
                raise template.no_text(f"one of its answers is {what}", where)
        texts = tuple(check_text(str(answer), template.place, where) for answer in answers)
        if label is not None and not any(text.strip() for text in texts):
            raise InputError(f"{template.place} gives no answer for {where}, which has a label.")
        return texts

    def _target(self, row: Mapping[str, Any], label: int | None, where: str) -> float | None:
        if label is None:
            return None
        value = self._value("target", row, where)
        try:
            target = float(value)
        except (TypeError, ValueError, OverflowError):
            target = math.nan
        if not math.isfinite(target):
            raise InputError(
                f"{self.templates['target'].place} gives {shown(value)} for {where}; it should be a number."
            )
        return target

    def _without_target(self, row: Mapping[str, Any], split: str) -> bool:
        """Whether the row lacks the column of the gold answer, as one of the test split may."""
        source = str(self.config["doc_to_target"])
        return split == "test" and source.isidentifier() and source not in row

    def _generated(self, row: Mapping[str, Any], split: str, where: str) -> str:
        source = self.config["doc_to_target"]
        if split == UNLABELLED or self._without_target(row, split):
            return ""
        text = str(source) if isinstance(source, int) else self._value("doc_to_target", row, where)
        if split == "test" and (text is None or (isinstance(text, str) and not text.strip())):
            return ""
        if not isinstance(text, str) or not text.strip():
            raise InputError(f"{self.templates['doc_to_target'].place} gives no text but {shown(text)} for {where}.")
        return self.delimiter + check_text(text, f"doc_to_target in {self.origins['doc_to_target']}", where)

    def _gold(self, row: Mapping[str, Any], split: str, where: str) -> Any:
        """What the label is read from; `None` for a row without one."""
        source = self.config["doc_to_target"]
        if split == UNLABELLED:
            return None
        if isinstance(source, int):
            return source
        if self._without_target(row, split):
            return None
        template = self.templates["doc_to_target"]
        # A template over a label that is not there gives no label, as a column does that is null or empty.
        column = template.lone_column() if template.has_markup and template.source not in row else None
        if column is not None and column in row and is_missing(row[column]):
            return None
        return self._value("doc_to_target", row, where)

    def _checked_choices(self, words: list[Any], where: str) -> tuple[str, ...]:
        place = f"doc_to_choice in {self.origins['doc_to_choice']}"
        for word in words:
            if not isinstance(word, str):
                advice = (
                    "correct the row, or make texts of numbers with {{column | map('string') | list}}"
                    if self.varying
                    else 'put it in quotes (YAML reads a bare yes or no as a boolean: write "yes")'
                )
                raise InputError(f"The choice {shown(word)} ({where}) is {type(word).__name__}, not text; {advice}.")
            if not word.strip():
                raise InputError(f"doc_to_choice has an empty choice ({where}); give each choice a word.")
            check_text(word, place, where)
        # A single row of a task with varying choices may have one candidate (ReCoRD): right, but nothing is learnt.
        least = 1 if self.varying else 2
        if len(words) < least:
            raise InputError(f"doc_to_choice gives {len(words)} choices ({where}); it should give at least {least}.")
        seen: set[str] = set()
        for word in map(str.strip, words):
            if word in seen:
                raise InputError(f"doc_to_choice has {shown(word)} more than once ({where}); choices must differ.")
            seen.add(word)
        return tuple(f"{self.delimiter}{word}" for word in words)


def _as_text(value: Any) -> str | None:
    """A value as text without white space around it; `None` for a null and for no text."""
    value = plain(value)
    return None if without_text(value) else str(value).strip() or None
