"""What every teacher gives, wherever its distribution comes from: a model here, or what one said earlier.

Shapes: N supervised tokens of a batch, B rows of a batch for ranking, V vocabulary or classes, H features of a hidden
state.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

from sinkd_llm.objectives import TopKSignal

if TYPE_CHECKING:
    from accelerate import Accelerator
    from datasets import Dataset

    from sinkd_llm.objectives import DistillationObjective


@dataclass(frozen=True)
class TeacherRows:
    """
    The teacher's signal at the supervised tokens of a batch, in the order of the student's rows.

    Attributes:
        signal (`Tensor` `[N, V]` or [`TopKSignal`]): its logits, or those of some ids of each row.
        position_N (`Tensor` `[N]`): each row's place in its answer, from 0.
        hidden_NH (`Tensor` `[N, H]`, *optional*): what [`Teacher.logits`] makes the logits of, if they were asked for
            and are smaller than the logits.
    """

    signal: Tensor | TopKSignal
    position_N: Tensor
    hidden_NH: Tensor | None = None


class Teacher(Protocol):
    """
    Where the teacher's distribution comes from. Nobody asks which teacher it is.

    Attributes:
        context_length (`int`, *optional*): the longest row that it reads; `None`: any.
        scores_classes (`bool`): V is the classes of a head, not a vocabulary.
        needs_all_ranks (`bool`): it is spread over the processes, so all call it at once or none does.
    """

    context_length: int | None
    scores_classes: bool
    needs_all_ranks: bool

    def signal(self, batch: Mapping[str, Any], *, with_hidden: bool = False) -> TeacherRows:  # pragma: no cover
        """
        The rows of the supervised tokens of a training batch.

        Args:
            batch (`Mapping`): what the run's collator made; the teacher finds its own part.
            with_hidden (`bool`, *optional*, defaults to `False`): give `hidden_NH` as well, where there are any.

        Raises:
            InputError: naming the examples for which there is no signal, or one that is not finite.
        """
        ...

    def logits(self, hidden_NH: Tensor) -> Tensor:  # pragma: no cover
        """The logits `[N, V]` of hidden states that [`signal`] gave, on any rank."""
        ...

    def choices(self, batch: Mapping[str, Any]) -> Tensor:  # pragma: no cover
        """Index of the choice that the teacher ranks first for each row of a ranking batch, `[B]`; -1: not known."""
        ...

    def check_run(
        self, objective: "DistillationObjective", verbalizer_ids: Tensor | None, tolerance: float
    ) -> None:  # pragma: no cover
        """
        Makes sure that the loss can be computed from what the teacher gives.

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
