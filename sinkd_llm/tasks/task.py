"""A task: its rows, rendered, and its metrics."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sinkd_llm.errors import InputError
from sinkd_llm.metrics import compute_metrics, compute_text_metrics
from sinkd_llm.row_files import Rows
from sinkd_llm.tasks.labels import LabelReader
from sinkd_llm.tasks.loading import SPLIT_KEYS, load_rows, local_files, without_gaps
from sinkd_llm.tasks.own_columns import check_columns, check_ids, column_names, without_columns
from sinkd_llm.tasks.rendered import rendered_rows, streamed_rows
from sinkd_llm.tasks.rendering import UNLABELLED, Example, RowRenderer
from sinkd_llm.tasks.sample import check_sample, drawn_rows
from sinkd_llm.tasks.schema import METADATA_SCORING, checked_keys, metrics_asked_for, read_task_file
from sinkd_llm.tasks.unlabelled import counted_rows, find_file, unlabelled_examples, unlabelled_rows
from sinkd_llm.values import shown

if TYPE_CHECKING:
    import datasets

# These compare choice indices as classes, so an index must mean the same in every row.
_CLASS_METRICS = ("mcc", "f1", "f1_macro")
# Examples that are written to disk together.
_AT_ONCE = 1_000
Indices = np.ndarray[tuple[int], np.dtype[np.int64]]
# In smaller files there are too few rows to keep them.
_CACHED_FROM_BYTES = 100_000


class Task:
    """
    A task read from a file in lm-evaluation-harness's schema.

    Args:
        path (`str` or `Path`): the YAML file.
        keep (sequence of `str`, *optional*): columns of the data that its rows keep as text, beside what is rendered.
        id_column (`str`, *optional*): the column of the data that holds a row's own id. Default: ids are made.
        keys (`Mapping`, *optional*): the keys of the task, includes merged, which `path` keeps in another form.

    Attributes:
        name (`str`): its `task` key.
        path (`Path`): the file.
        config (`dict[str, Any]`): its keys, includes merged.
        output_type (`str`): `"multiple_choice"` (answers are ranked) or `"generate_until"` (an answer is generated).
        choices (`tuple[str, ...]` or `None`): the answer choices, each with the delimiter in front, where
            every row has the same ones; `None` where they vary or the answer is generated.
        metric_names (`tuple[str, ...]`): what `compute_metrics` computes, `("acc",)` or `("rouge_l",)` by default.
        primary_metric (`str`): the one of these by which models are compared: results begin with it.
        scoring_columns (`tuple[str, ...]`): which of `group`, `answers` and `target` its rows have, for its metrics.
        text_columns (`tuple[str, ...]`): `text` and perhaps `text_pair`, if its rows have them, for encoders.

    Raises:
        InputError: for anything wrong in the file: see `read_task_file`, template errors, choices that
            are empty, equal or no text, and unknown metrics; for a column to keep that rows have already.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        keep: Sequence[str] = (),
        id_column: str | None = None,
        keys: Mapping[str, Any] | None = None,
    ) -> None:
        self.path = Path(path)
        self.config, self.origins = read_task_file(self.path) if keys is None else checked_keys(keys, self.path)
        self.name: str = self.config["task"]
        self.output_type: str = self.config["output_type"]
        self.description: str = self.config.get("metadata", {}).get("description", "")
        scored = self.config.get("metadata", {}).get("scoring", {})
        self._kept = tuple(name for name in dict.fromkeys(column_names(keep)) if name not in scored)
        self._renderer = RowRenderer(self.config, self.origins, self._kept, id_column)
        self.choices: tuple[str, ...] | None = self._renderer.choices
        self.scoring_columns: tuple[str, ...] = self._renderer.scoring_columns
        self.text_columns: tuple[str, ...] = self._renderer.text_columns
        self.metric_names = metrics_asked_for(self.config, self.origins, self.path)
        # A perplexity is no share of a teacher's, so it speaks for a task only where there is nothing else.
        self.primary_metric = next((name for name in self.metric_names if name != "perplexity"), self.metric_names[0])
        if self.choices is not None:
            self._check_two_classes(len(self.choices))
        if "token_f1" in self.metric_names and "answers" not in self.scoring_columns:
            raise InputError(
                f"The metric token_f1 of the task {self.name!r} compares texts, but metadata.scoring in {self.path} "
                "does not say where they are; add metadata: {scoring: {answers: …}}, a column or a template."
            )

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
        where = f"row {index} of the {split} split"
        if not isinstance(row, Mapping):
            raise InputError(f"{where} is {shown(row)}, not a mapping of column names to values.")
        (example,) = self._examples(Rows([row], where, [where]), [0], split, first=index)
        return example

    def load(
        self,
        split: str,
        data_dir: str | Path | None = None,
        limit: int | None = None,
        seed: int | None = None,
        *,
        labelled: bool | None = None,
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
            labelled (`bool`, *optional*): refuse a row without a label, by its place. Default: in the train split.
                With `False`, a label may be -1, empty or null, and rows may lack its column if others have it.

        Returns:
            `datasets.Dataset`: columns `id`, `prompt` and `completion` (str); where answers are ranked, also `choices`
            (list of str) and `label` (int, -1 for an unlabelled row); the `scoring_columns`: `group` (str), `answers`
            (list of str), `target` (float, `None` for an unlabelled row); and the `text_columns` (str).

        Raises:
            InputError: see `load_rows` and `render`; for a limit below 1; for a row without a label where it needs
                one; for choice lists that a metric cannot compare: of different lengths under `mcc`, `f1` or
                `f1_macro`, of more than two choices under `f1`.
        """
        check_sample(limit, seed)
        if data_dir is not None and not isinstance(data_dir, str | Path):
            raise InputError(f"data_dir is {shown(data_dir)}, which is no path; give the folder that holds the data.")
        folder = None if data_dir is None else Path(os.path.expanduser(data_dir))
        # Of incomplete rows a reader says at every start what it leaves out.
        skips = "incomplete_rows" in self.config.get("metadata", {}).get("local", {})
        known = isinstance(split, str) and split in SPLIT_KEYS and not skips
        files = local_files(self.config, self.path, split, folder) if known else []
        if not files or sum(file.stat().st_size for file in files) < _CACHED_FROM_BYTES:
            return self._rendered(split, folder, limit, seed, labelled)
        # The keys of included files are merged into these.
        asked: dict[str, Any] = {"config": self.config, "origins": self.origins, "split": split, "folder": folder}
        asked |= {"limit": limit, "seed": seed, "labelled": labelled, **self._also_asked}
        return rendered_rows(asked, files, lambda: self._rendered(split, folder, limit, seed, labelled))

    def load_unlabelled(
        self, path: str | Path, limit: int | None = None, seed: int | None = None
    ) -> "datasets.Dataset":
        """
        The rendered rows of a file without labels, with the columns of [`load`].

        The file is read as a stream and the rows of a large one are written to disk as they are rendered, where the
        data set reads them: a million rows need as much memory as a thousand. (A `.json` file that is one array is
        held as a whole; JSON lines are not.)

        Args:
            path (`str` or `Path`): `.csv`, `.tsv`, `.jsonl`, `.json` or `.parquet` with the columns of the task's
                rows, or, for a task that reads one column, `.txt` with one text a line. A relative path may also start
                beside the task file. A column of labels may be missing, empty or full: it is not looked at.
            limit, seed (`int`, *optional*): as for [`load`].

        Returns:
            `datasets.Dataset`: as of [`load`]. `completion` is empty and `label` -1; `group`, `answers` and `target`,
            which only scores need, are `None`. `id` is the row's own, from a column `id`, or
            `<task>-unlabelled-<row>-<hash>`.

        Raises:
            InputError: if the file cannot be found or read, see [`~sinkd_llm.tasks.unlabelled`]; for a row without
                text, with a column missing, or with the id of another row, by its place; for a task whose answers are
                generated.
        """
        check_sample(limit, seed)
        if self.output_type != "multiple_choice":
            raise InputError(
                f"The task {self.name!r} generates its answers, so a row without an answer has no token on which "
                "teacher and student could be compared; rows without labels are for tasks with answer choices."
            )
        file = find_file(path, self.path)
        if file.stat().st_size < _CACHED_FROM_BYTES:
            examples, order = self._unlabelled(file, limit, seed)
            rows = self._dataset(list(examples))
            return rows if order is None else rows.select(order).flatten_indices()
        asked: dict[str, Any] = {"config": self.config, "origins": self.origins, "split": UNLABELLED}
        asked |= {"limit": limit, "seed": seed, **self._also_asked}
        return streamed_rows(asked, [file], lambda: self._unlabelled_columns(file, limit, seed), self._features())

    def _unlabelled_columns(
        self, file: Path, limit: int | None, seed: int | None
    ) -> "tuple[Iterator[dict[str, list[Any]]], Indices | None]":
        """As [`_unlabelled`], some rows at a time as columns."""
        examples, order = self._unlabelled(file, limit, seed)
        parts = iter(lambda: list(islice(examples, _AT_ONCE)), [])
        return (self._columns(part) for part in parts), order

    def _unlabelled(
        self, file: Path, limit: int | None, seed: int | None
    ) -> "tuple[Iterator[Example], Indices | None]":
        """The examples of a file in its order, and which of them is the first, second, … of a sample."""
        rows = unlabelled_rows(file, self.config, self.path, self._renderer.columns_read())
        total = counted_rows(rows, self.name)
        drawn = in_file = None
        if limit is not None:
            drawn = np.asarray(drawn_rows(total, limit, seed))
            in_file = np.argsort(drawn)
        examples = unlabelled_examples(rows, self._renderer, self.name, None if drawn is None else drawn[in_file])
        return self._of_like_lengths(examples), None if in_file is None or seed is None else np.argsort(in_file)

    def _of_like_lengths(self, examples: Iterable[tuple[Example, str]]) -> Iterator[Example]:
        """The examples without their places, after [`_check_length`]."""
        first = None
        for example, place in examples:
            first = first or (example, place)
            self._check_length(example, place, *first)
            yield example

    def _rendered(
        self, split: str, data_dir: Path | None, limit: int | None, seed: int | None, labelled: bool | None
    ) -> "datasets.Dataset":
        """As [`load`], without the cache."""
        rows = load_rows(self.config, self.path, split, data_dir)
        if labelled is False:
            rows = without_gaps(rows, self._renderer.target_column())
        indices = drawn_rows(len(rows), limit, seed)
        own = self._renderer.id_column
        check_columns(rows, [*(self._kept if split == "train" else ()), *([own] if own is not None else [])])
        examples = self._examples(rows, indices, split)
        if own is not None:
            check_ids(examples, [rows.where(i) for i in indices], own)
        self._check_labelled(examples, [rows.where(i) for i in indices], split, labelled)
        return self._dataset(list(self._of_like_lengths(zip(examples, map(rows.where, indices), strict=True))))

    def _dataset(self, examples: Sequence[Example]) -> "datasets.Dataset":
        """The columns of [`load`]."""
        import datasets

        return datasets.Dataset.from_dict(self._columns(examples), features=self._features())

    def _features(self) -> "datasets.Features":
        import datasets

        text, texts = datasets.Value("string"), datasets.List(datasets.Value("string"))
        kinds = {"id": text, "prompt": text, "completion": text}
        if self.output_type == "multiple_choice":
            kinds |= {"choices": texts, "label": datasets.Value("int64")}
        scoring = {"group": text, "answers": texts, "target": datasets.Value("float64")}
        kinds |= {name: scoring[name] for name in self.scoring_columns} | dict.fromkeys(self.text_columns, text)
        for name in self._kept:
            if name in kinds:
                raise InputError(
                    f"The column {name!r} of the data of the task {self.name!r} is to be kept, but its rows have a "
                    "column of this name already, with other content; rename it in the data."
                )
        return datasets.Features({**kinds, **dict.fromkeys(self._kept, text)})

    def _columns(self, examples: Sequence[Example]) -> dict[str, list[Any]]:
        columns: dict[str, list[Any]] = {
            name: [example.kept[name] if name in self._kept else getattr(example, name) for example in examples]
            for name in self._features()
        }
        if "label" in columns:
            columns["label"] = [-1 if label is None else label for label in columns["label"]]
        return columns

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
        return compute_metrics(self.metric_names, predictions, references, self.as_scored(rows), numbers)

    def as_scored(self, rows: Any) -> Any:
        """The rows as metrics read them: what they keep of the data is no scoring column, whatever it is called."""
        return without_columns(rows, {*METADATA_SCORING} & {*self._kept})

    def _examples(self, rows: Rows, indices: Sequence[int], split: str, first: int = 0) -> list[Example]:
        """The examples of some rows, which are numbered from `first`; their labels are read together."""
        drafts = [self._renderer.draft(rows.rows[i], i + first, split, rows.where(i)) for i in indices]
        labels: Sequence[int | None] = [None] * len(drafts)
        if self._renderer.ranked:
            labels = self._label_reader(rows).read([draft.target for draft in drafts if draft.target is not None])
        return [
            self._renderer.example(draft, self.name, split, label) for draft, label in zip(drafts, labels, strict=True)
        ]

    @property
    def _also_asked(self) -> dict[str, Any]:
        """What rows depend on beside the task's file, where it is set."""
        found = {"kept": self._kept, "id_column": self._renderer.id_column}
        return {name: value for name, value in found.items() if value}

    def _label_reader(self, rows: Rows) -> LabelReader:
        source = self.config["doc_to_target"]
        reading = self.config.get("metadata", {}).get("labels_are")
        template = self._renderer.templates.get("doc_to_target")
        column = self._renderer.target_column()
        if isinstance(source, int) or (reading is None and column in rows.index_columns):
            reading = "indices"
        return LabelReader(
            task=self.name,
            place=f"doc_to_target in {self.origins['doc_to_target']}",
            reading=reading,
            from_template=template is not None and template.has_markup,
            same_choices=self.choices is not None,
            column=column,
        )

    def _check_labelled(
        self, examples: Sequence[Example], places: Sequence[str], split: str, labelled: bool | None
    ) -> None:
        if not (split == "train" if labelled is None else labelled):
            return
        for example, place in zip(examples, places, strict=True):
            if not example.completion:
                raise InputError(
                    f"There is no label on {place}: doc_to_target of the task {self.name!r} gives none, null or -1, "
                    "as in the test splits of GLUE and SuperGLUE; correct or drop the row, or use a labelled split."
                )

    def _check_length(self, example: Example, place: str, first: Example, first_place: str) -> None:
        """Refuses choice lists under which an index is no class, where metrics compare classes."""
        by_class = [name for name in self.metric_names if name in _CLASS_METRICS]
        if self.choices is not None or not by_class:
            return
        if len(example.choices) != len(first.choices):
            raise InputError(
                f"{place[0].upper()}{place[1:]} has {len(example.choices)} choices and {first_place} has "
                f"{len(first.choices)}, but {by_class[0]} compares classes, which must be the same in every row; use "
                "acc or em."
            )
        self._check_two_classes(len(example.choices))

    def _check_two_classes(self, count: int) -> None:
        if "f1" in self.metric_names and count > 2:
            raise InputError(
                f"The metric f1 of the task {self.name!r} is binary, but a row has {count} choices; use f1_macro, as "
                "metadata: {metrics: [f1_macro]}."
            )
