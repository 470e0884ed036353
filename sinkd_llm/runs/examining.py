"""A teacher is examined before its students are trained: what it says of the rows that it teaches, and of others."""

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sinkd_llm.evaluation.examination import examine, majority, sentences, tfidf_baseline
from sinkd_llm.inputs.by_kind import row_tokenizer
from sinkd_llm.inputs.over_choices import NO_LABEL
from sinkd_llm.inputs.reading import Reading
from sinkd_llm.runs.data import RunData
from sinkd_llm.runs.scorer import Scorer
from sinkd_llm.runs.teacher_rows import as_teacher_reads
from sinkd_llm.teachers import CachedTeacher
from sinkd_llm.teachers.questions import AnswerSet, Question, questions_of
from sinkd_llm.terminal import say

if TYPE_CHECKING:
    from sinkd_llm.training.config import SinKDConfig
    from sinkd_llm.training.trainer import SinKDTrainer


def examine_model(data: RunData, trainer: "SinKDTrainer", scorer: "Scorer", count: int) -> None:
    """
    Examines a teacher that is a model here, on some rows to train on and on those that it has just been scored on.

    Args:
        data ([`RunData`]): the rows.
        trainer ([`SinKDTrainer`]): with its teacher.
        scorer ([`Scorer`]): has scored the teacher.
        count (`int`): how many training rows; 0: none, and nothing is said.
    """
    from sinkd_llm.evaluation import TaskEvaluator

    scored = scorer.teacher_log_likelihoods
    if not count or scored is None or data.task is None or data.evaluation is None:
        return
    if "choices" not in data.train.column_names or "target" in data.train.column_names:
        return  # what is examined are distributions over choices
    assert trainer.teacher is not None
    known = [i for i, label in enumerate(data.train["label"][:]) if label != NO_LABEL]
    if not known:
        return
    labelled = data.train.select(sorted(random.Random(0).sample(known, min(count, len(known)))))
    rows = as_teacher_reads(labelled)
    evaluator = TaskEvaluator(data.task, rows, scorer.teacher_tokenizer(), Reading.of(trainer.args))
    taught = scorer.score(evaluator, "teacher, on training rows", trainer.teacher.model)
    scores = [
        _by_name(given, said, trainer.teacher.model, scorer, trainer.args)
        for given, said in ((labelled, taught.log_likelihoods), (data.evaluation, scored))
    ]
    say_examination(data, questions_of(labelled), scores[0], questions_of(data.evaluation), scores[1])


def examine_cache(data: RunData, folder: Path, scorer: "Scorer", args: "SinKDConfig") -> None:
    """
    Examines a teacher by what has just been cached of it over the answer choices.

    Args:
        data ([`RunData`]): the rows.
        folder (`Path`): of the cache.
        scorer ([`Scorer`]): has scored the teacher on the rows for evaluation, if it was to.
        args ([`SinKDConfig`]): the settings.
    """
    questions = questions_of(data.train)
    scores = CachedTeacher(folder).answers([question.name for question in questions])
    scored, theirs = scorer.teacher_log_likelihoods, None
    if scored is not None and args.choice_normalisation == "sum" and data.evaluation is not None:
        theirs = {q.name: np.asarray(row) for q, row in zip(questions_of(data.evaluation), scored, strict=True)}
    asked = questions_of(data.evaluation) if theirs else ()
    say_examination(data, questions, scores, asked, theirs, learns_from_pairs(args))


def _by_name(rows: Any, said: Sequence[Sequence[float]], model: Any, scorer: "Scorer", args: "SinKDConfig") -> Any:
    """Scores of rows by their names, as the loss takes them."""
    divisors: Sequence[Any] = [1.0] * len(said)
    if args.choice_normalisation == "token" and scorer.by_name:
        reads = row_tokenizer(model, scorer.teacher_tokenizer(), Reading.of(args))
        answers = reads.choice_ids(list(as_teacher_reads(rows)))
        divisors = [[len(ids) for ids in choices] for choices in answers]
    named = zip(questions_of(rows), said, divisors, strict=True)
    return {question.name: np.asarray(row) / np.asarray(by) for question, row, by in named}


def learns_from_pairs(args: "SinKDConfig") -> bool:
    """Whether a run takes a row's answer for the row's own, and not for one of its group's."""
    return args.group_column is None or bool(args.objective().terms_of_pairs)


def say_examination(
    data: RunData,
    taught: Sequence[Question],
    scores: Mapping[str, Any],
    held_out: Sequence[Question] = (),
    theirs: Mapping[str, Any] | None = None,
    pairs: bool = True,
) -> None:
    """
    Says in two lines how good and how sharp a teacher is, beside the most frequent answer and TF-IDF.

    Args:
        data ([`RunData`]): the rows.
        taught (sequence of [`Question`]): training rows, all or a sample.
        scores (`Mapping`): what the teacher says of them, by name.
        held_out, theirs: the same of the rows for evaluation, of which it may say nothing.
        pairs (`bool`, *optional*, defaults to `True`): whether each training row has its own answer, which a label can
            be held against; else it has one of its group's.
    """
    labels = labels_of(data.train) if pairs else {}
    examined = [_known(taught, scores, labels)]
    if data.evaluation is not None and theirs:
        gold = labels_of(data.evaluation)
        examined.append(_known(held_out, theirs, gold))
    if not examined[0][0]:
        return
    examination = examine(*examined[0], *(examined[1] if len(examined) > 1 and examined[1][0] else ()))
    judged_labels, baseline = [label for label in examined[-1][1] if label is not None], None
    if data.evaluation is not None and len(examined) > 1:
        texts = texts_of(data.train), texts_of(data.evaluation)
        train_labels = [None if label == NO_LABEL else label for label in data.train["label"][:]]
        if any(label is not None for label in train_labels):
            baseline = tfidf_baseline(texts[0], train_labels, texts[1], data.evaluation["label"][:])
    for sentence in sentences(examination, majority(judged_labels), baseline):
        say(sentence)


def say_shares(data: RunData, sets: Sequence[AnswerSet]) -> None:
    """
    Says how good a teacher is whose answers are known per group: how far the shares of its answers are from those of
    the labels, in the groups whose rows are all labelled.

    Args:
        data ([`RunData`]): the rows.
        sets (sequence of [`AnswerSet`]): what it says.
    """
    labels = labels_of(data.train)
    rows, off = 0, 0.0
    for one in sets:
        gold = [labels.get(name, NO_LABEL) for name in one.names]
        if NO_LABEL in gold:
            continue
        shares_MC = np.exp(one.scores_MC - np.logaddexp.reduce(one.scores_MC, axis=1, keepdims=True))
        said_C = one.mass_M @ shares_MC
        rows, off = rows + len(gold), off + np.abs(said_C - np.bincount(gold, minlength=len(said_C))).sum() / 2
    if rows:
        say(
            f"The teacher on {rows:,} rows of groups with all labels: its answers have the labels' shares but for "
            f"{off / rows:.1%} of the rows."
        )


def _known(
    questions: Sequence[Question], scores: Mapping[str, Any], labels: Mapping[str, int]
) -> tuple[list[Any], list[int | None]]:
    """The scores of the rows that have any, and their labels."""
    kept = [question for question in questions if question.name in scores]
    gold = [labels.get(question.name, NO_LABEL) for question in kept]
    return [scores[question.name] for question in kept], [None if label == NO_LABEL else label for label in gold]


def labels_of(rows: Any) -> dict[str, int]:
    """The labels of rows that have ids, by these."""
    # Whole columns: one value at a time takes `datasets` hundreds of times as long.
    return dict(zip(rows["id"][:], rows["label"][:], strict=True)) if "id" in rows.column_names else {}


def texts_of(rows: Any) -> list[str]:
    """What the words' baseline reads of rows: what the data say, or else the prompts."""
    if "text" not in rows.column_names:
        return rows["prompt"][:]
    if "text_pair" not in rows.column_names:
        return rows["text"][:]
    return [f"{first} {second or ''}" for first, second in zip(rows["text"][:], rows["text_pair"][:], strict=True)]
