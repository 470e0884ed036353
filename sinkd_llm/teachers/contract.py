"""What every teacher gives, wherever its distribution comes from: a model here, or what one said earlier.

Shapes: N supervised tokens of a batch, B rows of a batch for ranking, V vocabulary or classes, H features of a hidden
state.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

from sinkd_llm.objectives import TeacherSignal

if TYPE_CHECKING:
    from accelerate import Accelerator
    from datasets import Dataset

    from sinkd_llm.objectives import DistillationObjective


@dataclass(frozen=True)
class TeacherRows:
    """
    The teacher's signal at the supervised tokens of a batch, in the order of the student's rows.

    Attributes:
        signal ([`TeacherSignal`]): its logits, or the logits of some ids of each row.
        position_N (`Tensor` `[N]`): each row's place in its answer, from 0.
        hidden_NH (`Tensor` `[N, H]`, *optional*): what [`Teacher.logits`] makes the logits of, if they were asked for
            and are smaller than the logits.
    """

    signal: TeacherSignal
    position_N: Tensor
    hidden_NH: Tensor | None = None


class Teacher(Protocol):
    """
    Where the teacher's distribution comes from. Nobody asks which teacher it is.

    Attributes:
        context_length (`int`, *optional*): the longest row that it reads, in tokens; `None`: any.
        scores_classes (`bool`): V is the classes of a head, not a vocabulary.
        outputs (`int`): V.
        classes (`tuple[str, ...]`, *optional*): the names that a classification head gives its classes, in lower
            case and in their order, if they are known.
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
    needs_all_ranks: bool
    knows_training_rows_only: bool
    model: Any
    recorded_score: dict[str, Any] | None

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
        than `tolerance`, in units of the transport cost (0 to 2).

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
