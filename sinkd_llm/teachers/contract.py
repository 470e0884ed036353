"""What every teacher gives, wherever its distribution comes from: a model here, or what one said earlier.

Shapes: N supervised tokens of a batch (over answer choices: examples), B rows of a batch for ranking, V vocabulary or
classes (over answer choices: C), S sequences of a batch, H features of a hidden state.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

from sinkd_llm.models.kinds import SupervisedRows
from sinkd_llm.objectives import HeadOf, TeacherSets, TeacherSignal

if TYPE_CHECKING:
    import numpy as np
    from accelerate import Accelerator
    from datasets import Dataset

    from sinkd_llm.objectives import DistillationObjective


# The column of training features, and the entry of batches, that holds the number of each row's group.
GROUP_NUMBER = "group"


@dataclass(frozen=True)
class TeacherRows:
    """
    The teacher's signal at the supervised tokens of a batch, in the order of the student's rows.

    Attributes:
        signal ([`TeacherSignal`]): its logits, what its head would make them of, or the logits of some ids of each
            row.
        position_N (`Tensor` `[N]`): each row's place in its answer, from 0.
        row_N (`Tensor` `[N]`, *optional*): the student's rows that the teacher speaks of, growing. Default: all of
            them in their order. Only over answer choices a teacher may have nothing to say of a row.
        sets ([`TeacherSets`], *optional*): the groups of the signal's rows, where these are known per group: their
            number may then be another than N. Default: each is of the student's row at its place.
        states_SH (`Tensor` `[S, H]`, *optional*): the teacher's mean hidden state of each row's prompt, where the loss
            asks for it.
    """

    signal: TeacherSignal
    position_N: Tensor
    row_N: Tensor | None = None
    sets: TeacherSets | None = None
    states_SH: Tensor | None = None


def signal_of(rows: SupervisedRows) -> Tensor | HeadOf:
    """What an objective takes of a model's rows."""
    if isinstance(rows.scores, Tensor):
        return rows.scores
    states = rows.scores
    return HeadOf(states.hidden_NH, states.weight_VH, states.bias_V, states.scale, states.cap)


class Teacher(Protocol):
    """
    Where the teacher's distribution comes from. Nobody asks which teacher it is.

    Attributes:
        context_length (`int`, *optional*): the longest row that it reads, in tokens; `None`: any.
        scores_classes (`bool`): V is the classes of a head, not a vocabulary.
        outputs (`int`): V.
        classes (`tuple[str, ...]`, *optional*): the names that a classification head gives its classes, in lower
            case and in their order, if they are known.
        over_choices (`bool`): its signal is over the answer choices of a row.
        needs_all_ranks (`bool`): it is spread over the processes, so all call it at once or none does.
        knows_training_rows_only (`bool`): [`signal`] finds a row by its name, and rows for evaluation may go by the
            same names.
        model (`nn.Module`, *optional*): the model, if it is here; the run's rows are tokenised for it, too.
        recorded_score (`dict`, *optional*): its row of the results table, if it was scored earlier.
    """

    context_length: int | None
    scores_classes: bool
    outputs: int
    classes: tuple[str, ...] | None
    over_choices: bool
    needs_all_ranks: bool
    knows_training_rows_only: bool
    model: Any
    recorded_score: dict[str, Any] | None

    def signal(self, batch: Mapping[str, Any]) -> TeacherRows:  # pragma: no cover
        """
        The rows of the supervised tokens of a training batch. Whether they are finite is not asked: that would make
        every step wait for the device.

        Args:
            batch (`Mapping`): what the run's collator made; the teacher finds its own part.

        Raises:
            InputError: naming the examples for which there is no signal.
        """
        ...

    def count(self, batch: Mapping[str, Any]) -> int:  # pragma: no cover
        """Of how many examples of a training batch the teacher speaks; known to the host."""
        ...

    def groups_of(self, features: "Dataset") -> "np.ndarray[Any, Any] | None":  # pragma: no cover
        """
        The number of the group by which the teacher's rows of each training row are known, `[rows]`; rows of which it
        says nothing have a number of their own each. `None`: it has a row for each row.

        Raises:
            InputError: naming the rows that are not known.
        """
        ...

    def check_finite(self, batch: Mapping[str, Any]) -> None:  # pragma: no cover
        """
        Looks whether the teacher is at fault for a loss that is not finite.

        Raises:
            InputError: naming the examples of a training batch for which the signal is not finite.
        """
        ...

    def choices(self, batch: Mapping[str, Any]) -> Tensor:  # pragma: no cover
        """Index of the choice that the teacher ranks first for each row of a ranking batch, `[B]`; -1: not known."""
        ...

    def check_fits(
        self, student: Any, tokenizer: Any, reading: Mapping[str, Any], classes: Sequence[str] | None = None
    ) -> None:  # pragma: no cover
        """
        Makes sure that teacher and student read the same rows in the same way and score the same things.

        Args:
            student (`PreTrainedModel` or `PeftModel`): the student.
            tokenizer (`PreTrainedTokenizerBase`): the run's.
            reading (`Mapping`): `max_length`, `apply_chat_template` and `add_eos` of the run.
            classes (`Sequence[str]`, *optional*): the task's, in its order, in which heads without names are read.

        Raises:
            InputError: with what differs, and what to change.
        """
        ...

    def check_objective(
        self, objective: "DistillationObjective", verbalizer_ids: Tensor | None, tolerance: float
    ) -> None:  # pragma: no cover
        """
        Makes sure that the loss can be computed from what the teacher gives, and warns where that is known less well
        than `tolerance`, in units of the transport cost (0 to 2). From then on the teacher leaves its head to the
        loss, where the objective's `fused` allows that.

        Raises:
            InputError: saying what to change.
        """
        ...

    def check_rows(self, features: "Dataset") -> None:  # pragma: no cover
        """
        Makes sure that the teacher has a signal for these training rows.

        Raises:
            InputError: naming the first row that is not known, or known with other tokens.
        """
        ...

    def place(self, accelerator: "Accelerator", placement: str) -> None:  # pragma: no cover
        """Puts what the teacher holds where `placement` says, see [`~sinkd_llm.teachers.placement`]."""
        ...
