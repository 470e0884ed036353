"""What rows must be to be compared: each refusal says what was given and what to give.

Shape suffixes: N supervised tokens, V vocabulary, M rows that the teacher speaks of.
"""

import torch
from torch import Tensor

from sinkd_llm.objectives.couplings import TeacherSets
from sinkd_llm.objectives.head_of import HeadOf
from sinkd_llm.objectives.signals import DenseSignal, TeacherSignal, TopKSignal, as_signal, vocabulary_of

# The label of a row that has none, as torch has it.
IGNORE_INDEX = -100


def check_side(name: str, side: object) -> None:
    """
    Refuses what is neither logits `[N, V]` nor what stands for them.

    Args:
        name (`str`): `"student"` or `"teacher"`.
        side (`object`): what was given for it.

    Raises:
        `ValueError`: for another type or shape, and for logits that are no floating-point numbers.
    """
    if isinstance(side, HeadOf) or (isinstance(side, TopKSignal) and name == "teacher"):
        return
    logits = side.logits_NV if isinstance(side, DenseSignal) and name == "teacher" else side
    if not isinstance(logits, Tensor):
        raise ValueError(f"The {name} must be a tensor of logits [N, V] or a HeadOf, got {type(logits).__name__}.")
    if logits.ndim != 2:
        raise ValueError(
            f"The {name}'s logits must be [N, V], one row for each supervised token, got shape "
            f"{tuple(logits.shape)}"
            + (
                "; of logits [B, L, V] give logits[mask], with a mask [B, L] of these tokens."
                if logits.ndim == 3
                else "."
            )
        )
    if not logits.is_floating_point():
        raise ValueError(f"The {name}'s logits must be floating-point numbers, got {logits.dtype}.")


def check_places(N: int, *, example_N: object, position_N: object, group_N: object = None) -> None:
    """
    Refuses numbers of examples, places and groups that are not one for each row, whether or not the scope reads them.

    Raises:
        `ValueError`: with the shapes.
    """
    for name, given in (("example_N", example_N), ("position_N", position_N), ("group_N", group_N)):
        if given is None and name == "group_N":
            continue
        if not isinstance(given, Tensor):
            raise ValueError(f"{name} must be a tensor, got {type(given).__name__}.")
        if given.shape != (N,):
            raise ValueError(
                f"{name} must have one entry for each of the {N} rows of the student, got shape {tuple(given.shape)}."
            )


def check_rows(
    student: Tensor | HeadOf,
    teacher: TeacherSignal | None,
    labels_N: Tensor,
    taught_M: Tensor | None = None,
    sets: TeacherSets | None = None,
) -> bool:
    """
    Refuses sides and labels that do not match; see [`DistillationObjective`].

    Returns:
        `bool`: whether they belong to a regression.

    Raises:
        `ValueError`: for types, shapes and numbers of outputs that do not match.
    """
    check_side("student", student)
    if teacher is not None:
        check_side("teacher", teacher)
    if not isinstance(labels_N, Tensor):
        raise ValueError(f"labels_N must be a tensor, got {type(labels_N).__name__}.")
    N, outputs = len(student), vocabulary_of(student)
    M = N if taught_M is None else len(taught_M)
    if sets is not None:
        M = len(sets.group_M)
    if labels_N.shape != (N,) or (teacher is not None and len(teacher) != M):
        raise ValueError(
            f"Labels and teacher must have one row for each of the student's {N}, got {tuple(labels_N.shape)} "
            f"labels and {0 if teacher is None else len(teacher)} rows of the teacher"
            + ("." if taught_M is None and sets is None else f" for {M} that it speaks of.")
        )
    if taught_M is not None and not isinstance(student, Tensor):
        raise ValueError("taught_M needs a student that comes as logits.")
    if taught_M is not None and not _are_ids(taught_M):
        raise ValueError(f"taught_M must be the numbers of rows, of type int64, got {taught_M.dtype}.")
    regression = labels_N.is_floating_point()
    theirs = outputs if teacher is None else as_signal(teacher).vocabulary_size
    if min(outputs, theirs) < 1 or (not regression and outputs > 1 and theirs == 1):
        raise ValueError(
            f"The student has {outputs} outputs and the teacher {theirs}: there is nothing to compare over fewer than "
            "two ids."
        )
    if regression != (outputs == 1):
        raise ValueError(
            f"The student has {outputs} outputs and labels of type {labels_N.dtype}: one output goes "
            "with true values (floating point), and more with token ids or classes (integers)."
        )
    if not regression and not _are_ids(labels_N):
        raise ValueError(f"labels_N must be token ids of type int64, got {labels_N.dtype}; give labels_N.long().")
    return regression


def check_labels(labels_N: Tensor, V: int) -> None:
    """
    Refuses labels beyond the vocabulary on a CPU. Another device would have to be waited for in every step.

    Raises:
        `ValueError`: with what to do about rows without a label.
    """
    if labels_N.device.type != "cpu":
        return
    outside = labels_N[(labels_N < 0) | (labels_N >= V)]
    if not len(outside):
        return
    if bool((outside == IGNORE_INDEX).any()):
        raise ValueError(
            f"labels_N has {IGNORE_INDEX}, and every row must have a label: leave rows without one out of all "
            f"arguments. To keep them for the teacher's terms alone, give taught_M: with it, {IGNORE_INDEX} marks a "
            "row without a label."
        )
    raise ValueError(f"labels_N must lie in [0, {V}), the ids that the student has, got {outside[:5].tolist()}.")


def _are_ids(numbers: Tensor) -> bool:
    return numbers.dtype in (torch.int64, torch.int32)
