"""The scores of a run: of its models, one after another, on its evaluation rows."""

import hashlib
import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from sinkd_llm.errors import InputError
from sinkd_llm.inputs.over_choices import row_print
from sinkd_llm.models.kinds import TEACHER as READ_BY_TEACHER
from sinkd_llm.report.predictions import rounded
from sinkd_llm.report.results import TEACHER, ResultRow
from sinkd_llm.runs.data import RunData
from sinkd_llm.runs.profiling import profile
from sinkd_llm.runs.result_rows import compare_with_teacher, fill_in
from sinkd_llm.runs.teacher_rows import as_teacher_reads
from sinkd_llm.teachers.choices import name_key, named_keys
from sinkd_llm.teachers.questions import each_row
from sinkd_llm.terminal import progress, say

if TYPE_CHECKING:
    from datasets import Dataset

    from sinkd_llm.evaluation import TaskEvaluator, TaskScore
    from sinkd_llm.teachers.choices import TeacherChoices
    from sinkd_llm.training.config import SinKDConfig
    from sinkd_llm.training.trainer import SinKDTrainer

_TIMING = ("runtime", "samples_per_second", "steps_per_second")


class Scorer:
    """
    Scores the models of a run on its evaluation rows: as their task asks, or else what the trainer reports.

    Args:
        data ([`RunData`]): the rows, and their task if they have one.
        tokenizer (`PreTrainedTokenizerBase`): of all models.
        args ([`SinKDConfig`]): how rows are read, how many at a time, and on which device.
        trainer ([`SinKDTrainer`], *optional*): its rows are tokenised already, and it scores those without a task.
        by_name (`bool`, *optional*, defaults to `False`): the teacher's choices are recorded by the names of rows, for
            a signal over the answer choices. With a trainer it knows.
    """

    def __init__(
        self,
        data: RunData,
        tokenizer: Any,
        args: "SinKDConfig",
        trainer: "SinKDTrainer | None" = None,
        by_name: bool = False,
    ) -> None:
        self.data, self.args, self.trainer = data, args, trainer
        teacher = trainer.teacher if trainer is not None else None
        self.by_name = by_name or (teacher is not None and teacher.over_choices)
        self._evaluator = self._task_evaluator(tokenizer)
        self._teacher_predictions: list[Any] | None = None
        self.teacher_probabilities: list[list[float]] | None = None
        self.teacher_log_likelihoods: list[list[float]] | None = None
        self.scores: dict[str, TaskScore] = {}
        self._recorded: TeacherChoices | None = None
        self._record: dict[str, Any] | None = None

    def _task_evaluator(self, tokenizer: Any) -> "TaskEvaluator | None":
        from sinkd_llm.evaluation import TaskEvaluator
        from sinkd_llm.inputs.reading import Reading

        if self.data.task is None or self.data.evaluation is None:
            return None
        tokenized = self.trainer.evaluation_features() if self.trainer is not None else ()
        return TaskEvaluator(self.data.task, self.data.evaluation, tokenizer, Reading.of(self.args), tokenized)

    def _evaluator_of(self, name: str) -> "TaskEvaluator":
        """What scores a model: a teacher with a tokenizer or a prompt of its own reads the rows in its way."""
        from sinkd_llm.evaluation import TaskEvaluator
        from sinkd_llm.inputs.reading import Reading

        assert self._evaluator is not None
        tokenizer = self.teacher_tokenizer() if name == TEACHER else self._evaluator.tokenizer
        own = tokenizer is not self._evaluator.tokenizer or READ_BY_TEACHER in self._evaluator.dataset.column_names
        if name != TEACHER or not own:
            return self._evaluator
        assert self.data.task is not None
        tokenized = self.trainer.evaluation_features() if self.trainer is not None else ()
        rows = as_teacher_reads(self.data.evaluation)
        return TaskEvaluator(self.data.task, rows, tokenizer, Reading.of(self.args), tokenized)

    def evaluator_of_rows(self, rows: Any) -> "TaskEvaluator":
        """What scores students on other rows of the task than those for evaluation."""
        from sinkd_llm.evaluation import TaskEvaluator
        from sinkd_llm.inputs.reading import Reading

        assert self.data.task is not None
        assert self._evaluator is not None
        return TaskEvaluator(self.data.task, rows, self._evaluator.tokenizer, Reading.of(self.args))

    @property
    def teacher_predictions(self) -> list[Any] | None:
        """What the teacher chose for the rows for evaluation; -1 of rows where that is not known."""
        return self._teacher_predictions

    def teacher_tokenizer(self) -> Any:
        """What the run's teacher reads with: the tokenizer of all models, or over answer choices its own."""
        assert self._evaluator is not None
        tokenized = self.trainer.evaluation_features() if self.trainer is not None else []
        return tokenized[1][0].tokenizer if len(tokenized) > 1 else self._evaluator.tokenizer

    def row(self, name: str, model: Any, size_bytes: int | None = None, *, profiled: bool = False) -> ResultRow:
        """
        A model's row of the results table. The students after a teacher are compared with it.

        Args:
            name (`str`): in the table; `"teacher"` for the teacher.
            model (`PreTrainedModel` or `PeftModel`): the model.
            size_bytes (`int`, *optional*): bytes of its files.
            profiled (`bool`, *optional*, defaults to `False`): time it on single rows, too.
        """
        from sinkd_llm.models import count_parameters
        from sinkd_llm.models.partitioning import on_device

        row = ResultRow(name, {}, *count_parameters(model), size_bytes)
        if self._evaluator is not None:
            evaluator = self._evaluator_of(name)
            score = self.scores[name] = self.score(evaluator, name, model)
            if name == TEACHER:
                self.teacher_log_likelihoods, self.teacher_probabilities = score.log_likelihoods, score.probabilities
            fill_in(row, evaluator, score)
            self._compare(row, score, model)
            if profiled:
                with on_device(model, self.args.device):
                    profile(row, evaluator, model, self.args.device)
        elif self.data.evaluation is not None and name != TEACHER and self.trainer is not None:
            say(f"Scoring {len(self.data.evaluation)} rows: {name} …")
            metrics = self.trainer.evaluate()
            kept = {k.removeprefix("eval_"): v for k, v in metrics.items() if k != "epoch"}
            row.metrics = {k: v for k, v in kept.items() if k not in _TIMING}
            row.num_examples, row.seconds = len(self.data.evaluation), metrics.get("eval_runtime", 0.0)
        return row

    def record(self, model: Any, size_bytes: int | None = None) -> dict[str, Any] | None:
        """
        What a teacher cache keeps of its teacher's score, for [`recorded`] and for the agreement during training.

        Args:
            model (`PreTrainedModel`): the teacher.
            size_bytes (`int`, *optional*): bytes of its files.

        Returns:
            `dict` or `None`: the row of the results table, `rows` (a hash of the rows), and, where answers are chosen,
            `predictions` (the chosen index of each row), `keys` (what the teacher read of each row, as
            [`~sinkd_llm.teachers.choices.row_keys`], in hexadecimal digits; over answer choices the row's name, with
            its print among the `prints`) and, where it gives any, `probabilities` (of each
            row's choices). `None` without a task or without rows.
        """
        if self._evaluator is None:
            return None
        row = self.row(TEACHER, model, size_bytes)
        probabilities = None
        kept_of_rows: dict[str, Any] = {"keys": None}
        if self._teacher_predictions is not None:
            if self.by_name:
                kept_of_rows = named_rows(self._evaluator.dataset)
            else:
                kept_of_rows = {"keys": [key.hex() for key in self._evaluator.row_keys(model)]}
            if self.teacher_probabilities is not None:
                probabilities = rounded(self.teacher_probabilities)
        kept = {"predictions": self._teacher_predictions, **kept_of_rows, "probabilities": probabilities}
        return {"rows": rows_hash(self.data), **kept, **asdict(row)}

    def recorded(self, record: dict[str, Any] | None) -> ResultRow | None:
        """
        The teacher's row, if it was scored on these very rows when it was cached.

        The students that are scored after it are compared with what the teacher chose then, if the record says so for
        all evaluation rows: they may be some of the rows on which the teacher was scored.

        Raises:
            InputError: if the record is damaged.
        """
        from sinkd_llm.teachers.choices import TeacherChoices

        self._recorded = None
        if record is None or self.data.evaluation is None:
            return None
        these = record["rows"] == rows_hash(self.data)
        self._recorded, self._record = TeacherChoices.recorded(record), record
        if not these:
            return None
        predictions = record.get("predictions")
        if predictions is not None and len(predictions) != record.get("num_examples"):
            raise InputError(
                f"the teacher cache records {len(predictions)} predictions of {record.get('num_examples')} rows: its "
                "manifest.json is damaged; write the cache again with --overwrite."
            )
        return ResultRow.of(record)

    def recorded_choices(self, model: Any) -> list[int] | None:
        """
        What the teacher of [`recorded`] chose for each evaluation row as a student reads it, -1 where that is not
        known; `None` without a record, and where no choices are ranked.

        Args:
            model (`PreTrainedModel` or `PeftModel`): the student.

        Raises:
            InputError: if the record is damaged.
        """
        known = self._recorded_rows(model)
        return None if known is None or self._recorded is None else self._recorded.of(*known)

    def _recorded_rows(self, model: Any) -> tuple[list[bytes], list[int]] | None:
        """By what a record knows the evaluation rows as a student reads them, and how many choices each has."""
        if self._recorded is None or self._evaluator is None or "choices" not in self._evaluator.dataset.column_names:
            return None
        teacher = self.trainer.teacher if self.trainer is not None else None
        # Training reads the rows within the context of both.
        keys = self._keys(model, teacher.context_length if teacher is not None else None)
        return keys, [len(choices) for choices in self._evaluator.dataset["choices"]]

    def _keys(self, model: Any, max_length: int | None = None) -> list[bytes]:
        """By which the recorded choices of a teacher for the rows are known again."""
        assert self._evaluator is not None
        if self.by_name:
            these = self._record is not None and self._record["rows"] == rows_hash(self.data)
            return keys_over_choices(self._record, self._evaluator.dataset, same_rows=these)
        return self._evaluator.row_keys(model, max_length)

    def score(self, evaluator: "TaskEvaluator", name: str, model: Any) -> "TaskScore":
        """Scores a model, with a progress bar under this name."""
        from sinkd_llm.models.partitioning import on_device

        with (
            progress(f"Scoring {len(evaluator.dataset)} rows: {name}") as on_progress,
            on_device(model, self.args.device),
        ):
            return evaluator.score(
                model,
                batch_size=self.args.per_device_eval_batch_size,
                on_progress=on_progress,
                device=self.args.device,
                share=True,
            )

    def _compare(self, row: ResultRow, score: "TaskScore", model: Any) -> None:
        """Keeps what the teacher chose, and says how often a student chooses the same, and how far it is from it."""
        if self.data.task is None or self.data.task.output_type == "generate_until":
            return  # two free answers are hardly ever the same
        if row.name == TEACHER:
            self._teacher_predictions = score.predictions
            return
        if self._teacher_predictions is None and (known := self._recorded_rows(model)) is not None:
            assert self._recorded is not None
            self._teacher_predictions = self._recorded.of(*known)
            self.teacher_probabilities = self._recorded.probabilities_of(*known)
        if self._teacher_predictions is not None:
            rows = self.data.task.as_scored(self.data.evaluation)
            compare_with_teacher(row, rows, score, self._teacher_predictions, self.teacher_probabilities)


def named_rows(rows: "Dataset") -> dict[str, Any]:
    """What a record over answer choices keeps of its rows: `keys`, their names in hexadecimal digits, and `prints`."""
    keys = [name_key(str(name)).hex() for name in rows["id"][:]]
    return {"keys": keys, "prints": [row_print(row) for row in each_row(rows)]}


def keys_over_choices(score: dict[str, Any] | None, rows: "Dataset", *, same_rows: bool = False) -> list[bytes]:
    """[`~sinkd_llm.teachers.choices.named_keys`] of rows."""
    names, prints = map(str, rows["id"][:]), [row_print(row) for row in each_row(rows)]
    return named_keys(score, [*names], prints, same_rows=same_rows)


def rows_hash(data: RunData) -> str:
    """Of the rows that models are scored on."""
    assert data.evaluation is not None
    digest = hashlib.blake2b(data.name.encode(), digest_size=16)
    columns = [c for c in ("id", "prompt", "completion") if c in data.evaluation.column_names]
    for row in data.evaluation.select_columns(columns):
        digest.update(json.dumps(row, sort_keys=True).encode())
    return digest.hexdigest()
