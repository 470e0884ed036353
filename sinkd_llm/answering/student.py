"""A student that answers rows: what all of them share, whatever runs the model. It imports no torch."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, TypeVar

from sinkd_llm.answering.calibration import NONE
from sinkd_llm.answering.facts import StudentFacts
from sinkd_llm.answering.given_rows import given_rows
from sinkd_llm.answering.routing import Route
from sinkd_llm.errors import InputError
from sinkd_llm.tasks.rendering import Example, RowRenderer
from sinkd_llm.tasks.task import Task
from sinkd_llm.tasks.unlabelled import own_id, unlabelled_example
from sinkd_llm.values import listed, shown

# Batches whose rows are read before the first of them is answered: rows of like length share a batch.
BATCHES_AHEAD = 8
Placed = tuple[str, Mapping[str, Any]]
T = TypeVar("T")


@dataclass(frozen=True)
class Answer:
    """
    What a student says of a row.

    Args:
        id (`str` or `int`): the row's own id, from its column `id`, or its number from 0.
        choice (`str`): the answer that it chooses, or the text that it writes.
        index (`int`, *optional*): of the choice among the row's; `None` of a text.
        probability (`float`, *optional*): of the choice, calibrated if the student is; `None` of a text.
        probabilities (`dict[str, float]`): of all choices of the row, in their order.
        decision (`"answer"` or `"ask"`, *optional*): whether the student is sure enough; `None` without a route.
    """

    id: str | int
    choice: str
    index: int | None
    probability: float | None
    probabilities: dict[str, float]
    decision: str | None = None


class Student(ABC):
    """
    A student in use.

    Args:
        task ([`Task`]): what it answers.
        facts ([`StudentFacts`]): how it reads rows, its calibration and its route.

    Attributes:
        choices (`tuple[str, ...]` or `None`): the answers that every row may have, as words; `None` where they vary or
            are written.
        generates (`bool`): whether it writes its answers.
        num_cut (`int`): rows that were too long so far, and lost what `max_length` has no room for.
    """

    num_cut: int

    def __init__(self, task: Task, facts: StudentFacts) -> None:
        self.task, self.facts = task, facts
        self._renderer = RowRenderer(task.config, task.origins)
        self._columns = self._renderer.columns_read()
        self.choices = None if task.choices is None else self._words(task.choices)
        self.generates = task.output_type == "generate_until"

    @property
    def columns(self) -> list[str]:
        """The columns that the student reads of a row."""
        return sorted(self._columns)

    @property
    @abstractmethod
    def takes_choices(self) -> bool:
        """Whether it reads choices as words, and so can be asked any; a classification head has its classes."""

    @abstractmethod
    def log_probabilities(self, examples: Sequence[Example]) -> list[list[float]]:
        """
        The log-probability of every choice of each example, in nats, before calibration.

        Args:
            examples (sequence of [`Example`]): rendered rows, of which the label is not looked at. They are one batch.
        """

    def predict(self, rows: Iterable[Any], batch_size: int = 32) -> Iterator[Answer]:
        """
        Answer rows, as they come: few of them are in memory at a time.

        Args:
            rows (iterable of `str` or `Mapping`): texts, of a task that reads one column, or rows as the task's data
                have them, column name to value; or a table of pandas, Polars or PyArrow with these columns. Labels
                need not be there and are not looked at.
            batch_size (`int`, *optional*, defaults to `32`): rows that are answered together.

        Returns:
            `Iterator[Answer]`: in the order of the rows.

        Raises:
            InputError: at once, for rows that are none and a batch_size below 1; and after the answers to the rows
                before it, for a row without text, with a column missing, or with choices that cannot be.
        """
        return self.answers(self.placed(given_rows(rows)), batch_size)

    def placed(self, rows: Iterable[str | Mapping[str, Any]]) -> Iterator[Placed]:
        """Each of some texts or rows as a row, after a name for messages."""
        for index, row in enumerate(rows):
            where = f"row {index}"
            if isinstance(row, str):
                if len(self._columns) != 1:
                    raise InputError(
                        f"{where} is a text, but the task {self.task.name!r} reads {self._reads()} of a row; give "
                        "mappings of column names to values."
                    )
                row = {next(iter(self._columns)): row}
            if not isinstance(row, Mapping):
                raise InputError(f"{where} is {shown(row)}, neither a text nor a mapping of column names to values.")
            yield where, row

    def answers(
        self, rows: Iterable[Placed], batch_size: int = 32, batches_ahead: int = BATCHES_AHEAD
    ) -> Iterator[Answer]:
        """
        As [`predict`], of rows that have names already.

        Args:
            rows (iterable of `tuple[str, Mapping]`): the place of each row, for messages, and the row; such as a
                [`~sinkd_llm.row_streams.RowStream`].
            batch_size (`int`, *optional*, defaults to `32`): rows that are answered together.
            batches_ahead (`int`, *optional*, defaults to `8`): batches whose rows are read before the first answer.
        """
        if not isinstance(batch_size, int) or isinstance(batch_size, bool) or batch_size < 1:
            raise InputError(f"batch_size is {shown(batch_size)}; give a whole number, 1 or more.")
        return self._answers(self.examples(rows), batch_size, batch_size * batches_ahead)

    def examples(self, rows: Iterable[Placed]) -> Iterator[tuple[str | int, str, Example]]:
        """The id of each row, its place, and the row as its task renders it."""
        for index, (where, row) in enumerate(rows):
            example = unlabelled_example(row, where, index, self._renderer, self.task.name, self._columns)
            name = own_id(row)
            yield index if name is None else name, where, example

    def _answers(
        self, examples: Iterator[tuple[str | int, str, Example]], batch_size: int, window: int
    ) -> Iterator[Answer]:
        for some in _read_ahead(examples, window):
            # The name under which messages speak of a row is its place, which a user finds again.
            rows = [replace(example, id=where) for _, where, example in some]
            found: dict[int, Answer] = {}
            for batch in _by_length(rows, batch_size):
                ids = [some[i][0] for i in batch]
                found |= zip(batch, self.answer_batch(ids, [rows[i] for i in batch]), strict=True)
            yield from (found[i] for i in range(len(rows)))

    def all_log_probabilities(
        self,
        examples: Sequence[Example],
        batch_size: int = 32,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> list[list[float]]:
        """
        As [`log_probabilities`], of any number of examples.

        Args:
            examples (sequence of [`Example`]): rendered rows.
            batch_size (`int`, *optional*, defaults to `32`): examples that are read together.
            on_progress (`Callable[[int, int], None]`, *optional*): called with rows done and rows in all.
        """
        found: dict[int, list[float]] = {}
        for batch in _by_length(examples, batch_size):
            found |= zip(batch, self.log_probabilities([examples[i] for i in batch]), strict=True)
            if on_progress is not None:
                on_progress(len(found), len(examples))
        return [found[i] for i in range(len(examples))]

    def answer_batch(self, ids: Sequence[str | int], examples: Sequence[Example]) -> list[Answer]:
        """
        The answers to rendered rows that are read together.

        Args:
            ids (sequence of `str` or `int`): of the answers.
            examples (sequence of [`Example`]): as for [`log_probabilities`].
        """
        probabilities_NC = (self.facts.calibration or NONE).apply(self.log_probabilities(examples))
        return [
            self.answer_of(name, self.choices or self._words(example.choices), probabilities)
            for name, example, probabilities in zip(ids, examples, probabilities_NC, strict=True)
        ]

    def answer_of(self, name: str | int, words: Sequence[str], probabilities: Sequence[float]) -> Answer:
        """
        The answer that follows from the calibrated probabilities of the choices.

        Args:
            name (`str` or `int`): the answer's id.
            words (sequence of `str`): the choices.
            probabilities (sequence of `float`): of each.
        """
        return chosen(name, words, probabilities, self.facts.route)

    def _words(self, choices: Sequence[str]) -> tuple[str, ...]:
        return tuple(choice.removeprefix(self._renderer.delimiter) for choice in choices)

    def _reads(self) -> str:
        return f"the columns {listed(self.columns)}" if self._columns else "no column"


def _read_ahead(examples: Iterator[T], window: int) -> Iterator[list[T]]:
    """Lists of `window` examples; what cannot be read is raised after those before it."""
    while True:
        some: list[T] = []
        try:
            for example in islice(examples, window):
                some.append(example)
        except Exception:
            if some:
                yield some
            raise
        if not some:
            return
        yield some


def _by_length(examples: Sequence[Example], batch_size: int) -> Iterator[list[int]]:
    """Batches of the numbers of examples of like length, the longest first."""
    order = sorted(range(len(examples)), key=lambda i: -len(examples[i].prompt))
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


def chosen(
    name: str | int, words: Sequence[str], probabilities: Sequence[float], route: Route | None = None
) -> Answer:
    """
    The most probable of some choices as an answer.

    Args:
        name (`str` or `int`): the answer's id.
        words (sequence of `str`): the choices.
        probabilities (sequence of `float`): of each.
        route ([`Route`], *optional*): decides whether it is sure enough.
    """
    index = max(range(len(words)), key=probabilities.__getitem__)
    decision = None if route is None else route.decision(probabilities[index])
    by_word = dict(zip(words, probabilities, strict=True))
    return Answer(name, words[index], index, probabilities[index], by_word, decision)
