"""Whether a task is fit to train on: what its rows, labels and answers look like, and what is wrong with them."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from sinkd_llm.errors import InputError
from sinkd_llm.tasks.loading import SPLIT_KEYS
from sinkd_llm.tasks.task import Task

if TYPE_CHECKING:
    import datasets
    from transformers import PreTrainedTokenizerBase

    from sinkd_llm.inputs.contract import AnswerTokenizer


@dataclass(frozen=True)
class Range:
    """Smallest, median and largest of some counts."""

    least: int
    median: int
    most: int

    @classmethod
    def of(cls, counts: Sequence[int]) -> "Range | None":
        return cls(min(counts), round(median(counts)), max(counts)) if counts else None

    def __str__(self) -> str:
        return str(self.least) if self.least == self.most else f"{self.least} / {self.median} / {self.most}"


@dataclass(frozen=True)
class SplitCheck:
    """
    What a split looks like.

    Args:
        split (`str`): `"train"`, `"validation"` or `"test"`.
        num_rows (`int`): its rows.
        labels (`dict[str, int]`): gold answer to number of rows; `"answer 0"` and so on where the choices vary by row.
        num_choices (`Range`, *optional*): choices a row; `None` where the answer is generated.
        prompt_tokens (`Range`, *optional*): tokens of a prompt, if there was a tokenizer; of the texts that a
            classification head reads in its place.
        answer_tokens (`Range`, *optional*): tokens of a choice, or of the answer where it is generated; a class has
            none.
        example (`dict`): its first row.
    """

    split: str
    num_rows: int
    labels: dict[str, int]
    num_choices: Range | None
    prompt_tokens: Range | None
    answer_tokens: Range | None
    example: dict[str, Any]


@dataclass
class TaskCheck:
    """
    What [`check_task`] finds.

    Args:
        splits (`list[SplitCheck]`): one for each split.
        problems (`list[str]`): what stops training or scoring.
        warnings (`list[str]`): what may be meant so, but seldom is.
        classifies (`bool`): whether the model to train has a classification head.
    """

    splits: list[SplitCheck] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    classifies: bool = False


def check_task(
    task: Task,
    tokenizer: "PreTrainedTokenizerBase | None" = None,
    *,
    model_of: Callable[[Sequence[str] | None], Any] | None = None,
    data_dir: str | Path | None = None,
    splits: Sequence[str] | None = None,
    allow_unlabelled: bool = False,
) -> TaskCheck:
    """
    Renders and tokenises a task's rows, as training would, and says what is wrong with them.

    Args:
        task ([`Task`]): the task.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`], *optional*): of the model to train. Without one, tokens
            are not counted and answers that collide are not found.
        model_of (`Callable`, *optional*): gives the model to train, whose weights are not looked at, from the classes
            that the rows have: see [`~sinkd_llm.models.blueprint.blueprint`]. Its kind reads the rows; default: a
            decoder.
        data_dir (`str` or `Path`, *optional*): as for [`Task.load`].
        splits (`Sequence[str]`, *optional*): which ones. By default train and validation, so far as the task has them.
        allow_unlabelled (`bool`, *optional*, defaults to `False`): training rows may have no label, as in
            [`TaskArguments`].

    Raises:
        InputError: if the rows of a split cannot be read or rendered.
    """
    check = TaskCheck()
    if splits is None:
        splits = [split for split in ("train", "validation") if SPLIT_KEYS[split] in task.config]
        for split in {"train", "validation"} - {*splits}:
            try:
                task.load(split, data_dir)
            except InputError as error:  # as a run that trains on the task is refused
                check.problems.append(str(error))
    if task.output_type == "generate_until":
        from sinkd_llm.evaluation.generation import GenerationSettings

        GenerationSettings.of(task)
    prompts: dict[str, set[str]] = {}
    answer_tokenizer = None
    for split in splits:
        rows = task.load(split, data_dir, labelled=False)  # they are counted below
        prompts[split] = set(rows["prompt"])
        if tokenizer is not None and answer_tokenizer is None:
            answer_tokenizer = _answer_tokenizer(tokenizer, model_of, rows)
            check.classifies = _classifies(answer_tokenizer)
        tokens = _token_counts(rows, answer_tokenizer, check) if answer_tokenizer is not None else ([], [])
        ranked = "choices" in rows.column_names
        check.splits.append(
            SplitCheck(
                split=split,
                num_rows=len(rows),
                labels=_label_counts(task, rows) if ranked else {},
                num_choices=Range.of([len(choices) for choices in rows["choices"]]) if ranked else None,
                prompt_tokens=Range.of(tokens[0]),
                answer_tokens=Range.of(tokens[1]),
                example=rows[0],
            )
        )
        if ranked:
            _check_labels(task, check, rows["label"][:], allow_unlabelled and split == "train")
    if shared := len(prompts.get("train", set()) & prompts.get("validation", set())):
        prompt = (
            "1 prompt of the validation split is" if shared == 1 else f"{shared} prompts of the validation split are"
        )
        check.warnings.append(f"{prompt} also in the train split.")
    return check


def _answer_tokenizer(
    tokenizer: "PreTrainedTokenizerBase",
    model_of: Callable[[Sequence[str] | None], Any] | None,
    rows: "datasets.Dataset",
) -> "AnswerTokenizer":
    # Imported here: listing and rendering tasks does without torch.
    from sinkd_llm.inputs.answer_choices import class_names
    from sinkd_llm.inputs.by_kind import row_tokenizer
    from sinkd_llm.inputs.decoder_only import DecoderOnlyTokenizer
    from sinkd_llm.inputs.reading import Reading
    from sinkd_llm.models.kinds import context_length

    if model_of is None:
        return DecoderOnlyTokenizer(tokenizer)
    model = model_of(class_names(rows))
    return row_tokenizer(model, tokenizer, Reading(context_length(model)))


def _classifies(answer_tokenizer: "AnswerTokenizer") -> bool:
    from sinkd_llm.inputs.classifier import ClassTokenizer

    return isinstance(answer_tokenizer, ClassTokenizer)


def _token_counts(
    rows: "datasets.Dataset", answer_tokenizer: "AnswerTokenizer", check: TaskCheck
) -> tuple[list[int], list[int]]:
    """Lengths of prompts and of answers; adds to the problems what training would refuse."""
    from sinkd_llm.inputs.dataset import features_of

    ranked = "choices" in rows.column_names
    labelled = [index for index, label in enumerate(rows["label"]) if label != -1] if ranked else range(len(rows))
    if not labelled:
        return [], []
    try:
        features = features_of(rows.select(labelled), answer_tokenizer, ranking=ranked, keep=False)
    except InputError as error:
        if str(error) not in check.problems:
            check.problems.append(str(error))
        return [], []
    cut = features["num_cut"][:]
    prompts = [len(ids) + count for ids, count in zip(features["prompt_ids"], cut, strict=True)]
    answers: list[int] = []
    if not check.classifies:
        answers = [len(ids) for row in features["answers_ids"] for ids in row] if ranked else []
        answers = answers or [len(ids) for ids in features["answer_ids"]]
    if num_cut := sum(count > 0 for count in cut):
        check.warnings.append(
            f"{num_cut} of {len(features)} prompts are longer than the model reads "
            f"({answer_tokenizer.reading.max_length} tokens) and lose {answer_tokenizer.cut_place(rows.column_names)}."
        )
    return prompts, answers


def _label_counts(task: Task, rows: "datasets.Dataset") -> dict[str, int]:
    names = [choice.strip() for choice in task.choices] if task.choices else None
    counts = Counter(rows["label"])
    return {
        "no label" if label == -1 else (names[label] if names else f"answer {label}"): counts[label]
        for label in sorted(counts)
    }


def _check_labels(task: Task, check: TaskCheck, labels: list[int], allow_unlabelled: bool) -> None:
    found = check.splits[-1]
    split, gold = found.split, set(labels) - {-1}
    if unlabelled := labels.count(-1):
        # The hub's test splits are unlabelled by design.
        kind = check.warnings if split == "test" or allow_unlabelled else check.problems
        way = " A teacher can answer them: --allow_unlabelled true, also here." if split == "train" else ""
        said = f"{unlabelled} of {len(labels)} rows of the {split} split have no label (-1)."
        kind.append(said + ("" if allow_unlabelled else way))
    if len(gold) == 1 and task.choices:
        answer = task.choices[gold.pop()].strip()
        check.warnings.append(
            f"Every row of the {split} split has the answer {answer!r}: nothing can be learnt from it, and its scores "
            f"({', '.join(task.metric_names)}) mean nothing."
        )
    elif task.choices and split == "train" and 0 < len(gold) < len(task.choices):
        absent = [choice.strip() for index, choice in enumerate(task.choices) if index not in gold]
        check.warnings.append(f"No row of the train split has the answer {', '.join(map(repr, absent))}.")
    if found.num_choices and found.num_choices.least == 1:
        check.warnings.append(f"Some rows of the {split} split have one choice only, so they are right in any case.")
