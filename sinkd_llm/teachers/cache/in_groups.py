"""What a cache knows of rows whose teacher rows are known per group: which of its rows are whose, and for which losses
that is enough.

Shape suffixes: B rows of a batch, N of these of which the teacher speaks, M teacher rows.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sinkd_llm.errors import InputError, SettingError
from sinkd_llm.objectives import GROUP
from sinkd_llm.objectives.couplings import IDENTITY
from sinkd_llm.teachers.questions import AnswerSet

if TYPE_CHECKING:
    from sinkd_llm.objectives import DistillationObjective

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, eq=False)
class Found:
    """
    The teacher rows of a batch.

    Attributes:
        taught_N (`np.ndarray`): places in the batch of the rows that the teacher speaks of.
        row_M (`np.ndarray`): the rows of the cache.
        member_M (`np.ndarray`): the place in the batch of a row of the group that each is of.
        paired_M (`np.ndarray`): whether a group's teacher rows stand in the order of its rows in the batch.
    """

    taught_N: Array
    row_M: Array
    member_M: Array
    paired_M: Array


def found_in(index: Mapping[str, Array], entry_B: Array) -> Found:
    """
    The teacher rows of the groups that a batch has rows of.

    Of a group whose pairs are known these are the rows of the batch's rows, in their order, however many of the group
    are there. Of another one they are all that are known.

    Args:
        index (`Mapping`): of the cache.
        entry_B (`np.ndarray`): where the rows of the batch stand in it.
    """
    taught_N = np.flatnonzero(index["count"][entry_B])
    first_N = index["first"][entry_B][taught_N].astype(np.int64)
    rows, members, paired = [np.zeros(0, np.int64)], [], []
    for first in dict.fromkeys(first_N.tolist()):
        here = taught_N[first_N == first]
        entries = entry_B[here]
        of_pairs = bool(index["paired"][entries[0]])
        places = index["place"][entries] if of_pairs else np.arange(index["count"][entries[0]])
        rows.append(first + places.astype(np.int64))
        members += [int(here[0])] * len(places)
        paired += [of_pairs] * len(places)
    return Found(taught_N, np.concatenate(rows), np.array(members, np.int64), np.array(paired, bool))


def group_numbers(index: Mapping[str, Array], entry: Array) -> Array:
    """The number of the group of each row, by the entries of the rows: equal in a group, and of none other."""
    counts, first = index["count"][entry], index["first"][entry].astype(np.int64)
    return np.where(counts > 0, first, first.max(initial=0) + 1 + np.arange(len(entry)))


def answer_sets(
    index: Mapping[str, Array], entry: Array, names: Sequence[str], read: Callable[[Array], Mapping[str, Array]]
) -> list[AnswerSet]:
    """
    What there is of the groups of some rows, in the order of their first rows: of a group whose pairs are known the
    rows of these alone, of another one all that is known.

    Args:
        index (`Mapping`): of the cache.
        entry (`np.ndarray`): where the rows stand in it.
        names (`Sequence[str]`): theirs.
        read (`Callable`): rows of the cache to their arrays.
    """
    rows_of: dict[int, list[int]] = {}
    for row in np.flatnonzero(index["count"][entry]).tolist():
        rows_of.setdefault(int(index["first"][entry[row]]), []).append(row)
    found = []
    for first, rows in rows_of.items():
        rows.sort(key=lambda row: int(index["place"][entry[row]]))
        one, members = entry[rows[0]], tuple(names[row] for row in rows)
        paired = bool(index["paired"][one])
        places = index["place"][entry[rows]].astype(np.int64) if paired else np.arange(index["count"][one])
        arrays = read(first + places)
        found.append(AnswerSet(members, arrays["logits"], arrays["times"], paired))
    return found


def check_objective(objective: "DistillationObjective", some_pairs: bool, source: str) -> None:
    """
    Makes sure that a loss asks for no pairs that are not known.

    Args:
        objective ([`DistillationObjective`]): the loss.
        some_pairs (`bool`): whether in some groups it is known which teacher row is whose.
        source (`str`): what they come from.

    Raises:
        SettingError: naming the setting, and what to set.
        InputError: for a loss without the term that learns from sets.
    """
    known = f"the teacher's rows in {source} are known per group"
    if objective.transport_scope != GROUP:
        raise SettingError(
            "transport_scope", f"is {objective.transport_scope}, and {known}; set transport_scope to group."
        )
    if objective.has_divergence:
        raise SettingError(
            "divergence",
            f"is {objective.divergence}, which compares each row with a teacher row of its own, and {known}: which "
            "is whose is not known. Set divergence to none and transported_weight to about 10.",
        )
    if objective.sinkhorn_weight > 0:
        raise SettingError(
            "sinkhorn_weight",
            f"is {objective.sinkhorn_weight:g}, whose cost needs as many teacher rows as rows, and {known}; set it to "
            "0, and transported_weight to about 10.",
        )
    moved = objective.transported_settings
    if moved is None:
        raise InputError(
            f"Nothing learns from the teacher: {known}, and transported_weight is 0; set it to about 10, or leave the "
            "teacher out (sinkd finetune)."
        )
    if moved.transported_coupling == IDENTITY:
        raise SettingError(
            "transported_coupling",
            f"is identity, which takes teacher row i for row i, and {known}; set it to transport (or proportion).",
        )
    if moved.uses_pairs and not some_pairs:
        raise SettingError(
            "transported_anchor",
            f"is {moved.transported_anchor:g}, which holds teacher row i near row i, and {known}, in any order; set "
            "it to 1.",
        )
