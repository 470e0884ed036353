"""A stream of rows that a Python user gives: written to disk once for a run, and then read as any other rows."""

import logging
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import datasets
import pyarrow as pa
from datasets.arrow_writer import ArrowWriter, SchemaInferenceError

from sinkd_llm.errors import InputError, first_line
from sinkd_llm.terminal import progress
from sinkd_llm.training.checkpoints import checkpoints

if TYPE_CHECKING:
    from sinkd_llm.training.config import SinKDConfig

logger = logging.getLogger(__name__)

# In the folder of the run.
FOLDER = "streams"


def stored_streams(args: "SinKDConfig", train_dataset: Any, eval_dataset: Any) -> tuple[Any, Any]:
    """
    The rows of a run, where streams (`datasets.IterableDataset`) among them have become data sets on disk.

    Training shuffles rows, looks at them more than once, and goes on from a checkpoint with the rows that it had, all
    of which a stream cannot do. So its rows are written once, to `<output_dir>/streams`, with the memory of a few
    rows: of the training rows as many as `max_steps` updates take, and without `max_steps` all. (An endless stream
    needs `max_steps`, or `stream.take(n)`: that it has no end cannot be known.) With a larger `max_steps`, a run that
    is gone on with sees the rows that it has again.

    While the folder holds a checkpoint, the rows that were written for it are used: a stream that would give other
    rows now, because it is shuffled or its source has grown, does not change a run. Without a checkpoint a stream is
    read anew. In several processes the first one reads it; all must see `output_dir`.

    Args:
        args ([`SinKDConfig`]): `output_dir`, `max_steps`, and how many rows an update takes.
        train_dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`], *optional*): as the user gave it.
        eval_dataset (the same, or a `dict` of them, *optional*): of a stream all rows are written.

    Returns:
        `tuple`: the same; in the place of a stream a [`~datasets.Dataset`].

    Raises:
        InputError: for a stream that fails, that has no row, or whose rows do not fit into one table.
    """
    needed = None
    if args.max_steps > 0:
        needed = args.max_steps * args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    train_dataset = _stored(args, train_dataset, "train_dataset", needed)
    if isinstance(eval_dataset, Mapping):
        parts = {name: _stored(args, part, f"eval_dataset[{name!r}]", None) for name, part in eval_dataset.items()}
        return train_dataset, parts
    return train_dataset, _stored(args, eval_dataset, "eval_dataset", None)


def _stored(args: "SinKDConfig", given: Any, argument: str, needed: int | None) -> Any:
    if not isinstance(given, datasets.IterableDataset):
        return given
    output_dir = Path(args.output_dir or ".")
    file = output_dir / FOLDER / f"{quote(argument, safe='')}.arrow"
    with args.main_process_first(local=False, desc="writing a stream"):
        if args.process_index == 0:
            if file.is_file() and checkpoints(output_dir):
                logger.warning(
                    "%s is a stream, and the rows that were written for the run in %s are used again, for it holds a "
                    "checkpoint; give another output_dir to read the stream anew.",
                    argument,
                    output_dir,
                )
            else:
                _write(given, file, argument, needed)
        return datasets.Dataset.from_file(str(file))


def _write(stream: datasets.IterableDataset, file: Path, argument: str, needed: int | None) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f"{file.name}.part")
    rows, count = iter(islice(stream, needed)), 0
    try:
        with (
            progress(f"Writing the rows of {argument}, a stream, to {file}") as on_progress,
            # Of mixed types there would be a column of JSON.
            ArrowWriter(path=str(part), features=stream.features, on_mixed_types=None) as writer,
        ):
            while (row := _next(rows, count, argument)) is not None:
                writer.write(row)
                count += 1
                on_progress(count, needed or count + 1)
            writer.finalize()
        part.replace(file)
    except SchemaInferenceError as error:
        raise InputError(f"{argument} is a stream without a row; give one that has some.") from error
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{argument} is a stream whose rows do not fit into one table, around row {count} ({first_line(error)}); "
            "give each column one type in all rows, or the stream its features."
        ) from error
    finally:
        part.unlink(missing_ok=True)
    logger.warning("%s is a stream, of which %s rows are kept in %s.", argument, f"{count:,}", file)


def _next(rows: Any, count: int, argument: str) -> Any:
    try:
        return next(rows, None)
    except Exception as error:  # somebody's own source of rows may fail in any way
        raise InputError(
            f"{argument} is a stream that fails after {count:,} rows ({type(error).__name__}: {first_line(error)}); "
            "correct its source."
        ) from error
