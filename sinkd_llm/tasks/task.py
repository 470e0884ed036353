"""A task: how a row becomes a prompt, its answer choices and the gold one."""

import ast
import hashlib
import math
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sinkd_llm.errors import InputError
from sinkd_llm.metrics import (
    CHOICE_METRICS,
    TEXT_METRICS,
    check_metric_names,
    compute_metrics,
    compute_text_metrics,
)
from sinkd_llm.tasks.loading import load_rows
from sinkd_llm.tasks.schema import read_task_file
from sinkd_llm.tasks.template import Template

if TYPE_CHECKING:
    import datasets

# Accuracy under another ranking of the choices: evaluation reports every ranking by itself.
_RANKINGS = ("acc_norm", "acc_bytes")
# These compare choice indices as classes, so an index must mean the same in every row.
_CLASS_METRICS = ("mcc", "f1", "f1_macro")


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


class Task:
    """
    A task read from a file in lm-evaluation-harness's schema.

    Args:
        path (`str` or `Path`): the YAML file.

    Attributes:
        name (`str`): its `task` key.
        path (`Path`): the file.
        config (`dict[str, Any]`): its keys, includes merged.
        output_type (`str`): `"multiple_choice"` (answers are ranked) or `"generate_until"` (an answer is generated).
        choices (`tuple[str, ...]` or `None`): the answer choices, each with the delimiter in front, where
            every row has the same ones; `None` where they vary or the answer is generated.
        metric_names (`tuple[str, ...]`): what `compute_metrics` computes, `("acc",)` or `("rouge_l",)` by default.
        scoring_columns (`tuple[str, ...]`): which of `group`, `answers` and `target` its rows have, for its metrics.
        text_columns (`tuple[str, ...]`): `text` and perhaps `text_pair`, if its rows have them, for encoders.

    Raises:
        InputError: for anything wrong in the file: see `read_task_file`, template errors, choices that
            are empty, equal or no text, and unknown metrics.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config, self.origins = read_task_file(self.path)
        self.name: str = self.config["task"]
        self.output_type: str = self.config["output_type"]
        metadata = self.config.get("metadata", {})
        self.description: str = metadata.get("description", "")
        self.scoring_columns: tuple[str, ...] = tuple(metadata.get("scoring", {}))
        self.text_columns: tuple[str, ...] = ("text", "text_pair")[: len(metadata.get("texts", ()))]
        for template in self._templates.values():
            template.check()
        fixed = self.config.get("doc_to_choice")
        self.choices: tuple[str, ...] | None = None
        if isinstance(fixed, list | dict):
            words = fixed.values() if isinstance(fixed, dict) else fixed
            self.choices = self._checked_choices(list(words), f"{self.origins['doc_to_choice']}")
        self.metric_names = self._read_metric_names()

    def __repr__(self) -> str:
        return f"Task({self.name!r}, path={str(self.path)!r})"

    def render(self, row: Mapping[str, Any], index: int, split: str) -> Example:
        """
        Render one row.

        Args:
            row (`Mapping[str, Any]`): column name to value.
            index (`int`): the row's place in its split, for its id.
            split (`str`): `"train"`, `"validation"` or `"test"`.

        Raises:
            InputError: if the row lacks a column, a template fails, the prompt is empty, or the label
                is outside the choices. A row of the test split may lack the label.
        """
        return self._render(row, index, split, f"row {index} of the {split} split")

    def load(
        self,
        split: str,
        data_dir: str | Path | None = None,
        limit: int | None = None,
        seed: int | None = None,
    ) -> "datasets.Dataset":
        """
        The rendered rows of one split: TRL prompt-completion rows with three more columns.

        Args:
            split (`str`): `"train"`, `"validation"` or `"test"`.
            data_dir (`str` or `Path`, *optional*): folder with the original files of the benchmark, or
                its parent. By default the data set comes from the hub.
            limit (`int`, *optional*): number of rows to keep, the first ones unless `seed` is given. A
                larger number keeps them all.
            seed (`int`, *optional*): draw the `limit` rows at random instead. Under one seed, a smaller
                sample is the beginning of a larger one.

        Returns:
            `datasets.Dataset`: columns `id`, `prompt` and `completion` (str); where answers are ranked, also `choices`
            (list of str) and `label` (int, -1 for an unlabelled row); the `scoring_columns`: `group` (str), `answers`
            (list of str), `target` (float, `None` for an unlabelled row); and the `text_columns` (str).

        Raises:
            InputError: see `load_rows` and `render`; for a limit below 1; for choice lists of different lengths under
                a metric that compares classes (`mcc`, `f1`, `f1_macro`).
        """
        import datasets

        if limit is not None and limit < 1:
            raise InputError(f"limit is {limit}, but at least one row is needed.")
        rows = load_rows(self.config, self.path, split, None if data_dir is None else Path(data_dir))
        indices = list(range(len(rows)))
        if limit is not None:
            if seed is not None:
                random.Random(seed).shuffle(indices)
            indices = indices[:limit]
        examples = [self._render(rows.rows[i], i, split, rows.where(i)) for i in indices]
        self._check_lengths(examples, [rows.where(i) for i in indices])
        text, texts = datasets.Value("string"), datasets.List(datasets.Value("string"))
        kinds = {"id": text, "prompt": text, "completion": text}
        if self.output_type == "multiple_choice":
            kinds |= {"choices": texts, "label": datasets.Value("int64")}
        scoring = {"group": text, "answers": texts, "target": datasets.Value("float64")}
        kinds |= {name: scoring[name] for name in self.scoring_columns} | dict.fromkeys(self.text_columns, text)
        columns: dict[str, list[Any]] = {name: [getattr(example, name) for example in examples] for name in kinds}
        if "label" in columns:
            columns["label"] = [-1 if label is None else label for label in columns["label"]]
        return datasets.Dataset.from_dict(columns, features=datasets.Features(kinds))

    def compute_metrics(
        self,
        predictions: Sequence,
        references: Sequence,
        rows: "datasets.Dataset | Mapping[str, Sequence] | None" = None,
        numbers: Sequence[float] | None = None,
    ) -> dict[str, float]:
        """
        The task's metrics.

        Args:
            predictions (`Sequence`): index of the chosen answer of each row, or, where answers are generated, their
                texts.
            references (`Sequence`): the gold indices (`label`) or texts (`completion`), in the same order.
            rows (`Dataset` or `Mapping[str, Sequence]`, *optional*): the scored rows of `load`, in the same order.
                Needed by a task with `scoring_columns`.
            numbers (`Sequence[float]`, *optional*): what a model with one output predicts, on the scale of the
                choices; `pearson` and `spearman` compare these instead of the nearest choices.

        Returns:
            `dict[str, float]`: metric name to score. `perplexity`, which needs a model, is left out: see
            [`~sinkd_llm.metrics.perplexity`].

        Raises:
            InputError: see [`~sinkd_llm.metrics.compute_metrics`]; if rows are needed and not given.
        """
        if self.output_type == "generate_until":
            return compute_text_metrics(self.metric_names, predictions, references)
        if self.scoring_columns and rows is None:
            raise InputError(
                f"The metrics of the task {self.name!r} ({', '.join(self.metric_names)}) need the columns "
                f"{', '.join(self.scoring_columns)} of the scored rows; pass the data set as rows."
            )
        return compute_metrics(self.metric_names, predictions, references, rows, numbers)

    @cached_property
    def _templates(self) -> dict[str, Template]:
        keys = ("description", "doc_to_text", "doc_to_choice", "doc_to_target", "gen_prefix")
        templates = {
            key: Template(self.config[key], key, str(self.origins[key]))
            for key in keys
            if isinstance(self.config.get(key), str)
        }
        for name in self.scoring_columns:
            source = self.config["metadata"]["scoring"][name]
            templates[name] = Template(source, f"metadata.scoring.{name}", str(self.origins["metadata"]))
        for name, source in zip(self.text_columns, self.config.get("metadata", {}).get("texts", ()), strict=False):
            templates[name] = Template(source, "metadata.texts", str(self.origins["metadata"]))
        return templates

    def _render(self, row: Mapping[str, Any], index: int, split: str, where: str) -> Example:
        prompt = self._prompt(row, where)
        choices: tuple[str, ...] = ()
        label = None
        if self.output_type == "generate_until":
            completion = self._generated(row, split, where)
        else:
            choices = self.choices or self._row_choices(row, where)
            label = self._label(row, choices, split, where)
            completion = "" if label is None else choices[label]
        # Prompt and answers, so that a changed row or template changes the id.
        texts = (prompt, *(choices or (completion,)))
        digest = hashlib.blake2b("\0".join(texts).encode(), digest_size=4).hexdigest()
        return Example(
            id=f"{self.name}-{split}-{index}-{digest}",
            prompt=prompt,
            choices=choices,
            label=label,
            completion=completion,
            group=str(self._value("group", row, where)) if "group" in self.scoring_columns else None,
            answers=self._answers(row, label, where) if "answers" in self.scoring_columns else None,
            target=self._target(row, label, where) if "target" in self.scoring_columns else None,
            **{name: str(self._value(name, row, where)).strip() for name in self.text_columns},
        )

    def _value(self, key: str, row: Mapping[str, Any], where: str) -> Any:
        """A key that names a column gives its value; any other text is a template."""
        template = self._templates[key]
        if template.source in row:
            return row[template.source]
        if not template.has_markup and template.source.isidentifier():
            raise template.missing_column(template.source, row, where)
        return template.render(row, where)

    def _prompt(self, row: Mapping[str, Any], where: str) -> str:
        text = self._value("doc_to_text", row, where)
        if not isinstance(text, str) or not text.strip():
            raise InputError(f"{self._templates['doc_to_text'].place} gives no text but {text!r} for {where}.")
        if text.isdigit():
            raise InputError(
                f"{self._templates['doc_to_text'].place} gives the bare number {text!r} for {where}, which "
                "lm-evaluation-harness reads as the index of a choice; put words around it."
            )
        prefix = self._plain_value("gen_prefix", row, where)
        if prefix and not (text[-1].isspace() or prefix[0].isspace()):
            text += self.config.get("target_delimiter", " ")
        return self._plain_value("description", row, where) + text + prefix

    def _plain_value(self, key: str, row: Mapping[str, Any], where: str) -> str:
        """As `_value`, for the keys that are often plain words: one word need not be a column."""
        template = self._templates.get(key)
        if template is None:
            return ""
        return str(row[template.source]) if template.source in row else template.render(row, where)

    def _row_choices(self, row: Mapping[str, Any], where: str) -> tuple[str, ...]:
        return self._checked_choices(self._list("doc_to_choice", row, where), where)

    def _list(self, key: str, row: Mapping[str, Any], where: str) -> list[Any]:
        words = self._value(key, row, where)
        place = self._templates[key].place
        if isinstance(words, str):
            try:
                words = ast.literal_eval(words)
            except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
                raise InputError(
                    f"{place} gives {words!r} for {where}, which is not a list of texts; write it as "
                    '{{[choice1, choice2]}} or as ["no", "yes"].'
                ) from error
        if not isinstance(words, list):
            raise InputError(f"{place} gives {words!r} for {where}; it should be a list of texts.")
        return words

    def _answers(self, row: Mapping[str, Any], label: int | None, where: str) -> tuple[str, ...]:
        answers = tuple(map(str, self._list("answers", row, where)))
        if label is not None and not any(answer.strip() for answer in answers):
            raise InputError(f"{self._templates['answers'].place} gives no answer for {where}, which has a label.")
        return answers

    def _target(self, row: Mapping[str, Any], label: int | None, where: str) -> float | None:
        if label is None:
            return None
        value = self._value("target", row, where)
        try:
            target = float(value)
        except (TypeError, ValueError):
            target = math.nan
        if not math.isfinite(target):
            raise InputError(f"{self._templates['target'].place} gives {value!r} for {where}; it should be a number.")
        return target

    def _generated(self, row: Mapping[str, Any], split: str, where: str) -> str:
        source = self.config["doc_to_target"]
        if split == "test" and str(source).isidentifier() and source not in row:
            return ""
        text = str(source) if isinstance(source, int) else self._value("doc_to_target", row, where)
        if not isinstance(text, str) or not text.strip():
            raise InputError(f"{self._templates['doc_to_target'].place} gives no text but {text!r} for {where}.")
        return self.config.get("target_delimiter", " ") + text

    def _check_lengths(self, examples: Sequence[Example], places: Sequence[str]) -> None:
        """Refuses choice lists of different lengths under metrics for which an index is a class."""
        by_class = [name for name in self.metric_names if name in _CLASS_METRICS]
        if self.choices is not None or not by_class:
            return
        for example, place in zip(examples, places, strict=True):
            if len(example.choices) != len(examples[0].choices):
                raise InputError(
                    f"{place[0].upper()}{place[1:]} has {len(example.choices)} choices and {places[0]} has "
                    f"{len(examples[0].choices)}, but {by_class[0]} compares classes, which must be the same in every "
                    "row; use acc or em."
                )

    def _checked_choices(self, words: list[Any], where: str) -> tuple[str, ...]:
        for word in words:
            if not isinstance(word, str):
                raise InputError(
                    f"The choice {word!r} ({where}) is {type(word).__name__}, not text; put it in quotes "
                    '(YAML reads a bare yes or no as a boolean: write "yes").'
                )
            if not word.strip():
                raise InputError(f"doc_to_choice has an empty choice ({where}); give each choice a word.")
        # A single row of a task with varying choices may have one candidate (ReCoRD): right, but nothing is learnt.
        least = 2 if isinstance(self.config["doc_to_choice"], list | dict) else 1
        if len(words) < least:
            raise InputError(f"doc_to_choice gives {len(words)} choices ({where}); it should give at least {least}.")
        stripped = [word.strip() for word in words]
        double = next((word for word in stripped if stripped.count(word) > 1), None)
        if double is not None:
            raise InputError(f"doc_to_choice has {double!r} more than once ({where}); choices must differ.")
        delimiter = self.config.get("target_delimiter", " ")
        return tuple(f"{delimiter}{word}" for word in words)

    def _label(self, row: Mapping[str, Any], choices: tuple[str, ...], split: str, where: str) -> int | None:
        source = self.config["doc_to_target"]
        if isinstance(source, int):
            target: Any = source
        elif split == "test" and source.isidentifier() and source not in row:
            return None
        else:
            target = self._value("doc_to_target", row, where)
            if source not in row and re.fullmatch(r"-1|\d+", target, flags=re.ASCII):
                target = int(target)
        if target is None or target == -1:  # how JSON, and GLUE on the hub, mark an unlabelled row
            return None
        words = [choice.removeprefix(self.config.get("target_delimiter", " ")) for choice in choices]
        if isinstance(target, str) and target in words:
            return words.index(target)
        if isinstance(target, int) and 0 <= target < len(choices):
            return int(target)
        raise InputError(
            f"The label {target!r} of {where} is outside the choices of the task {self.name!r}: it should be "
            f"one of {', '.join(map(repr, words))} or an index from 0 to {len(words) - 1}."
        )

    def _read_metric_names(self) -> tuple[str, ...]:
        names = []
        for entry in self.config.get("metric_list", []):
            if not isinstance(entry, dict) or not isinstance(entry.get("metric"), str):
                raise InputError(
                    f"metric_list in {self.origins['metric_list']} holds {entry!r}; an entry looks like metric: acc."
                )
            names.append("acc" if entry["metric"] in _RANKINGS else entry["metric"])
        # Metrics that lm-evaluation-harness has no name for, such as f1_macro.
        names += map(str, self.config.get("metadata", {}).get("metrics", []))
        ranked = self.output_type == "multiple_choice"
        try:
            check_metric_names(names, CHOICE_METRICS if ranked else TEXT_METRICS)
        except InputError as error:
            raise InputError(f"{self.path}: {error}") from error
        return tuple(dict.fromkeys(names)) or (("acc",) if ranked else ("rouge_l",))
