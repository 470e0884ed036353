"""What the terms of hidden states need beside the student: a learnt projection, and a queue of the teacher's states.

Shapes: S sequences of a micro-batch, E examples that the teacher speaks of, H features of the teacher's state, G of
the student's, Q states in the queue.
"""

from typing import Any

import torch
from torch import Tensor, nn

from sinkd_llm.distributed import Ranks
from sinkd_llm.errors import InputError
from sinkd_llm.models.kinds import SupervisedRows
from sinkd_llm.objectives import (
    ObjectiveOutput,
    StateSettings,
    Term,
    cosine_distances,
    queue_cross_entropies,
    with_terms,
)
from sinkd_llm.optimal_transport.precision import no_autocast
from sinkd_llm.teachers import TeacherRows


class StateTerms(nn.Module):
    """
    Adds the terms of hidden states to a loss.

    It is no part of the student, whose folder does not have it, and no wrapper of the student's sees it: who trains it
    puts its parameters into the optimizer, averages their gradients over the processes, and keeps [`kept`] in
    checkpoints. Both are in fp32, whatever the student's type is.

    Args:
        settings ([`StateSettings`]): of the terms, of which one is in use.
        student_width, teacher_width (`int`): G and H.
        seed (`int`): draws the projection, where the widths differ; of equal widths it begins as the identity.

    Attributes:
        queue_QH (`Tensor` `[Q, H]`): the teacher's states of the latest examples, in the order in which they came, of
            all processes; none at first.
    """

    queue_QH: Tensor

    def __init__(self, settings: StateSettings, student_width: int, teacher_width: int, seed: int) -> None:
        super().__init__()
        self.settings = settings
        weight_HG = torch.eye(teacher_width)
        if student_width != teacher_width:
            # Drawn apart from what draws rows and dropout, which the term does not change.
            drawn = torch.Generator().manual_seed(seed)
            weight_HG = torch.randn(teacher_width, student_width, generator=drawn) / student_width**0.5
        self.weight_HG = nn.Parameter(weight_HG)
        self.register_buffer("queue_QH", torch.zeros(0, teacher_width))

    def forward(
        self,
        output: ObjectiveOutput,
        rows: SupervisedRows,
        theirs: TeacherRows,
        num_examples: Tensor | int | None = None,
    ) -> ObjectiveOutput:
        """
        The loss with the terms; in training, the teacher's states then join the queue.

        Args:
            output ([`ObjectiveOutput`]): the loss of a micro-batch without them.
            rows ([`SupervisedRows`]), theirs ([`TeacherRows`]): its two sides, with `states_SH`.
            num_examples (`Tensor` or `int`, *optional*): what the terms are divided by: the examples of the
                accumulation window. Default: E.
        """
        assert rows.states_SH is not None
        assert theirs.states_SH is not None
        of = self.settings
        taught_E = rows.example_N[rows.position_N == 0]
        E = len(taught_E)
        divisor = E if num_examples is None else num_examples
        teacher_EH = theirs.states_SH[taught_E].float()
        self._check(rows.states_SH, teacher_EH)
        with no_autocast(teacher_EH):
            student_EH = rows.states_SH[taught_E].float() @ self.weight_HG.T
            terms = []
            if of.hidden_weight > 0:
                distance = cosine_distances(student_EH, teacher_EH).sum()
                terms.append(Term(of.HIDDEN, of.hidden_weight, distance, E, divisor))
            if of.queue_weight > 0:
                entropy = queue_cross_entropies(
                    student_EH, teacher_EH, self.queue_QH, of.queue_temperature, of.queue_teacher_temperature
                ).sum()
                terms.append(Term(of.QUEUE, of.queue_weight, entropy, E, divisor))
                if self.training:
                    self._remember(teacher_EH)
        return with_terms(output, terms)

    def _check(self, student_SG: Tensor, teacher_EH: Tensor) -> None:
        """Configurations have given the widths, and modelling code of others may give something else."""
        for who, given, known in (
            ("student", student_SG.shape[1], self.weight_HG.shape[1]),
            ("teacher", teacher_EH.shape[1], self.weight_HG.shape[0]),
        ):
            if given != known:
                raise InputError(
                    f"The {who}'s hidden states have {given} features, and its configuration says {known}; set "
                    "hidden_weight and queue_weight to 0."
                )

    @torch.no_grad()
    def _remember(self, teacher_EH: Tensor) -> None:
        """The same on all processes, so that one checkpoint serves all."""
        ranks = Ranks.of()
        if ranks is not None:
            counts = [n for (n,) in ranks.numbers(len(teacher_EH), device=teacher_EH.device)]
            teacher_EH = ranks.gather(teacher_EH, counts)
        self.queue_QH = torch.cat([self.queue_QH, teacher_EH.detach()])[-self.settings.queue_size :]

    def fill_queue(self) -> None:
        """A queue of as many states as it may hold, of zeros: for the estimate of its memory."""
        self.queue_QH = self.weight_HG.new_zeros(self.settings.queue_size, len(self.weight_HG))

    def average_gradients(self) -> None:
        """The mean over the processes, as they do with the student's; all of them have to call this."""
        ranks, gradient = Ranks.of(), self.weight_HG.grad
        if ranks is not None and gradient is not None:
            self.weight_HG.grad = ranks.sum(gradient) / ranks.count

    def kept(self) -> dict[str, Any]:
        """What a checkpoint holds of it."""
        return {"projection": self.weight_HG.detach().cpu(), "queue": self.queue_QH.cpu()}

    def restore(self, kept: Any) -> None:
        """
        Goes on from [`kept`].

        Raises:
            ValueError: if that is of other models.
        """
        tensors = [kept.get(name) if isinstance(kept, dict) else None for name in ("projection", "queue")]
        H, G = self.weight_HG.shape
        projection, queue = tensors
        if not (isinstance(projection, Tensor) and isinstance(queue, Tensor)):
            raise ValueError("there is no projection and no queue")
        if projection.shape != (H, G) or queue.ndim != 2 or queue.shape[1] != H:
            raise ValueError(f"they are of hidden states of other widths than {G} and {H}")
        with torch.no_grad():
            self.weight_HG.copy_(projection)
        self.queue_QH = queue.to(self.weight_HG.device, self.weight_HG.dtype)[-self.settings.queue_size :]
