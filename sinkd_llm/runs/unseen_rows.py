"""Labelled rows that a student has not seen: what its folder keeps of them, and the rows themselves."""

from pathlib import Path
from typing import TYPE_CHECKING

from sinkd_llm.answering.facts import HeldOut, StudentFacts
from sinkd_llm.inputs.reading import Reading
from sinkd_llm.runs.data import RunData

if TYPE_CHECKING:
    from sinkd_llm.training.config import SinKDConfig


def write_facts(output_dir: Path, data: RunData, args: "SinKDConfig") -> None:
    """
    Write what a student that a run has saved needs to answer rows; nothing for rows without a task.

    Args:
        output_dir (`Path`): the folder of the run.
        data ([`RunData`]): its rows.
        args ([`SinKDConfig`]): how it read them.
    """
    if data.task is None:
        return
    settings, held_out = data.arguments, None
    if settings is not None and data.held_out is not None:
        held_out = HeldOut(
            heldout_share=settings.heldout_share,
            max_train_samples=settings.max_train_samples,
            allow_unlabelled=settings.allow_unlabelled,
            id_column=settings.id_column,
            seed=args.sample_seed,
        )
    StudentFacts.of_run(data.task, Reading.of(args), held_out, output_dir).write(output_dir)
