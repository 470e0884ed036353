"""`evaluate`: load a model and score it on a task, or on several, one after another."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sinkd_llm.environment import default_device
from sinkd_llm.errors import InputError
from sinkd_llm.interrupts import termination_raises
from sinkd_llm.metrics.averages import BENCHMARKS, average_of
from sinkd_llm.metrics.calibration import probabilities_of
from sinkd_llm.report.results import ResultRow
from sinkd_llm.runs.folder import source_size_bytes
from sinkd_llm.runs.profiling import profile as profile_model
from sinkd_llm.runs.result_rows import compare_with_teacher, fill_in
from sinkd_llm.runs.task_rows import task_split
from sinkd_llm.tasks import load_task
from sinkd_llm.tasks.registry import expand_tasks
from sinkd_llm.terminal import progress, say

if TYPE_CHECKING:
    from datasets import Dataset

    from sinkd_llm.answering.calibration import Calibration
    from sinkd_llm.evaluation import TaskEvaluator, TaskScore
    from sinkd_llm.tasks import Task


@dataclass
class TeacherAnswers:
    """
    What a teacher says of scored rows.

    Attributes:
        predictions (`list[int]`): the index of each chosen answer; -1 where it is not known.
        probabilities (`list[list[float]]`, *optional*): of each row's choices, where those of all rows are known.
    """

    predictions: list[int]
    probabilities: list[list[float]] | None = None


@dataclass
class EvaluateResult:
    """
    What `sinkd evaluate` gives of a task.

    Attributes:
        task ([`Task`]): the task.
        rows ([`~datasets.Dataset`]): the rows that were scored.
        row ([`ResultRow`]): of the results table.
        score ([`TaskScore`]): scores and answers.
        teacher ([`TeacherAnswers`], *optional*): to the same rows, where they are given.
        calibration ([`~sinkd_llm.answering.calibration.Calibration`], *optional*): what the probabilities are made
            with.
    """

    task: "Task"
    rows: "Dataset"
    row: ResultRow
    score: "TaskScore"
    teacher: TeacherAnswers | None = None
    calibration: "Calibration | None" = None


@dataclass
class Evaluations:
    """
    What `sinkd evaluate` gives of several tasks.

    Attributes:
        results (`list[EvaluateResult]`): of the tasks that were scored, at least one.
        failed (`dict[str, str]`): the others, and why each was not scored.
        averages (`dict[str, float]`): of the benchmarks that were asked for, by what they are over.
    """

    results: list[EvaluateResult]
    failed: dict[str, str] = field(default_factory=dict)
    averages: dict[str, float] = field(default_factory=dict)


@termination_raises()
def run_evaluations(
    model_name_or_path: str,
    tasks: str,
    *,
    data_dir: str | None = None,
    split: str = "validation",
    max_eval_samples: int | None = None,
    batch_size: int = 32,
    max_length: int | None = 1024,
    apply_chat_template: bool = False,
    add_eos: bool | None = None,
    teacher_file: str | None = None,
    teacher_cache: str | None = None,
    profile: bool = True,
    **loading: Any,
) -> Evaluations:
    """
    Score a model on tasks by ranking the answers, or by generating them. The model is loaded once.

    A calibration that the model's folder keeps for a task is applied.

    Args:
        model_name_or_path (`str`): a hub id, a folder, a GGUF file or a bundled name.
        tasks (`str`): see [`~sinkd_llm.tasks.registry.expand_tasks`].
        data_dir, split, max_eval_samples: which rows.
        batch_size, max_length, apply_chat_template, add_eos: see [`evaluate_task`].
        teacher_file (`str`, *optional*): a teacher's answers to the rows, see
            [`~sinkd_llm.teachers.answer_file.read_answer_file`].
        teacher_cache (`str`, *optional*): a cache whose teacher was scored on the rows.
        profile (`bool`, *optional*, defaults to `True`): time the model on single rows of the first task.
        loading: more keyword arguments of [`load_model`].

    Raises:
        InputError: if no task could be scored: why the first one was not; for a teacher beside several tasks.
    """
    from sinkd_llm.evaluation import TaskEvaluator
    from sinkd_llm.inputs.reading import Reading
    from sinkd_llm.models import count_parameters, load_model, load_tokenizer

    names = expand_tasks(tasks)
    if len(names) > 1 and (teacher_file or teacher_cache):
        flag = "--teacher_file" if teacher_file else "--teacher_cache"
        raise InputError(f"{flag} holds answers to the rows of one task, but there are {len(names)} tasks; name one.")
    failed: dict[str, InputError] = {}
    ready: dict[str, tuple[Task, Dataset, TeacherAnswers | None]] = {}
    for name in names:
        try:
            task = load_task(name)
            rows = task_split(task, split, data_dir, max_eval_samples)
            ready[name] = task, rows, _answers_of_file(Path(teacher_file), rows, split) if teacher_file else None
        except InputError as error:
            failed[name] = error
    if not ready:
        raise failed[names[0]]
    say(f"Loading {model_name_or_path} …")
    tokenizer_keys = ("revision", "trust_remote_code")
    tokenizer = load_tokenizer(model_name_or_path, **{k: v for k, v in loading.items() if k in tokenizer_keys})
    model = load_model(model_name_or_path, **loading)
    if loading.get("quantization_config") is None:
        model.to(default_device())
    counted, size = count_parameters(model)[0], source_size_bytes(model_name_or_path)
    results: list[EvaluateResult] = []
    for name, (task, rows, teacher) in ready.items():
        evaluator = TaskEvaluator(task, rows, tokenizer, Reading(max_length, apply_chat_template, add_eos))
        try:
            calibration = calibration_of(model_name_or_path, task)
            with progress(f"Scoring {len(rows)} rows of {task.name}") as on_progress:
                score = evaluator.score(
                    model,
                    batch_size=batch_size,
                    on_progress=on_progress,
                    calibrate=None if calibration is None else calibration.apply,
                )
        except InputError as error:
            failed[name] = error
            continue
        row = ResultRow(Path(model_name_or_path).name or model_name_or_path, {}, counted, size_bytes=size)
        fill_in(row, evaluator, score)
        if teacher_cache is not None:
            teacher = answers_of_cache(Path(teacher_cache), evaluator, model)
        if teacher is not None:
            compare_with_teacher(row, task.as_scored(rows), score, teacher.predictions, teacher.probabilities)
        if profile and not results:
            profile_model(row, evaluator, model)
        results.append(EvaluateResult(task, rows, row, score, teacher, calibration))
    if not results:
        raise failed[names[0]]
    scores = {result.task.name: result.row.metrics for result in results}
    asked = [name for name in (part.strip() for part in tasks.split(",")) if name in BENCHMARKS]
    averages = dict(filter(None, (average_of(name, scores) for name in asked)))
    return Evaluations(results, {name: str(error) for name, error in failed.items()}, averages)


def calibration_of(model_name_or_path: str, task: "Task") -> "Calibration | None":
    """The calibration that a student's folder keeps, if it was made for answers like those of a task."""
    from sinkd_llm.answering.facts import StudentFacts

    folder = Path(model_name_or_path).expanduser()
    facts = StudentFacts.load(folder) if folder.is_dir() else None
    if facts is None or facts.calibration is None:
        return None
    return facts.calibration if facts.answers(task, folder) else None


def _answers_of_file(path: Path, rows: "Dataset", split: str) -> TeacherAnswers:
    """What a file says of rows, of which it may have a part."""
    from sinkd_llm.teachers.answer_file import read_answer_file
    from sinkd_llm.teachers.questions import HARD, questions_of

    if "choices" not in rows.column_names:
        raise InputError(f"{path} holds a teacher's answers, but the answers of this task are free text.")
    questions = questions_of(rows)
    found = read_answer_file(path.expanduser(), questions, split)
    for sentence in found.sentences():
        say(sentence)
    scores = [found.answers.get(question.name) for question in questions]
    predictions = [-1 if one is None else int(np.argmax(one)) for one in scores]
    # An answer alone says nothing of probabilities.
    known = [one for one in scores if one is not None and not np.isin(one, (0.0, HARD)).all()]
    return TeacherAnswers(predictions, probabilities_of(known) if len(known) == len(scores) else None)


def answers_of_cache(folder: Path, evaluator: "TaskEvaluator", model: Any) -> TeacherAnswers:
    """
    What the teacher of a cache answered to rows when it was cached.

    Args:
        folder (`Path`): of the cache.
        evaluator ([`TaskEvaluator`]): of the rows.
        model (`PreTrainedModel`): the student: rows are known again by what it reads, or over answer
            choices by their names and what they say.

    Raises:
        InputError: if the cache does not know the teacher's answers to all rows.
    """
    from sinkd_llm.runs.scorer import keys_over_choices
    from sinkd_llm.teachers.cache.manifest import Manifest
    from sinkd_llm.teachers.choices import TeacherChoices, why_unknown

    manifest = Manifest.load(folder.expanduser())
    recorded = TeacherChoices.recorded(manifest.teacher_score)
    if "choices" not in evaluator.dataset.column_names:
        raise InputError(f"--teacher_cache {folder} says what a teacher chose, and these answers are free text.")
    if manifest.layout.over_choices:
        keys = keys_over_choices(manifest.teacher_score, evaluator.dataset)
    else:
        keys = evaluator.row_keys(model)
    if not len(recorded) or recorded.missing(keys):
        raise InputError(f"--teacher_cache {folder}: {why_unknown(manifest.teacher_score)}")
    counts = [len(choices) for choices in evaluator.dataset["choices"]]
    return TeacherAnswers(recorded.of(keys, counts), recorded.probabilities_of(keys, counts))
