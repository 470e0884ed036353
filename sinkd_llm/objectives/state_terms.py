"""Terms that compare hidden states in place of distributions: their cosine, and what they are like among others.

Shape suffixes: E examples, H features of the teacher's state, Q states in the queue.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from sinkd_llm.objectives.setting_checks import check_numbers


@dataclass(frozen=True)
class StateSettings:
    """The settings of both terms; by default neither is computed.

    Args:
        hidden_weight (`float`, *optional*, defaults to `0.0`):
            Weight of [`cosine_distances`], at least 0.
        queue_weight (`float`, *optional*, defaults to `0.0`):
            Weight of [`queue_cross_entropies`], at least 0.
        queue_size (`int`, *optional*, defaults to `4096`):
            The most states in the queue.
        queue_temperature, queue_teacher_temperature (`float`, *optional*, default to `0.2` and `0.01`):
            By which the cosines of the student and of the teacher are divided, above 0.

    Raises:
        `ValueError`: for a setting out of its range.
    """

    HIDDEN: ClassVar[str] = "hidden"
    QUEUE: ClassVar[str] = "queue"

    hidden_weight: float = 0.0
    queue_weight: float = 0.0
    queue_size: int = 4096
    queue_temperature: float = 0.2
    queue_teacher_temperature: float = 0.01

    def __post_init__(self) -> None:
        check_numbers(self)

    @property
    def in_use(self) -> bool:
        """Whether one of the terms is computed."""
        return self.hidden_weight > 0 or self.queue_weight > 0


def cosine_distances(student_EH: Tensor, teacher_EH: Tensor) -> Tensor:
    """
    `1 - cos(s_e, t_e)`, `[E]`, in [0, 2].

    Args:
        student_EH (`Tensor` `[E, H]`): states of the student, projected to the teacher's width.
        teacher_EH (`Tensor` `[E, H]`): the teacher's states of the same examples; never receives a gradient.
    """
    return 1 - (_unit(student_EH) * _unit(teacher_EH.detach())).sum(dim=-1)


def queue_cross_entropies(
    student_EH: Tensor, teacher_EH: Tensor, queue_QH: Tensor, temperature: float, teacher_temperature: float
) -> Tensor:
    """
    What an example is like, by the student and by the teacher, as in SEED (Fang et al., 2021, arXiv:2101.04731):
    `-sum_d p_e(d) log q_e(d)`, `[E]`, in nats, over the states d of the queue and the teacher's own state of the
    example: `p_e = softmax_d(cos(t_e, d) / teacher_temperature)` and `q_e = softmax_d(cos(s_e, d) / temperature)`.

    With an empty queue there is one d, and the value is 0.

    Args:
        student_EH, teacher_EH: as in [`cosine_distances`].
        queue_QH (`Tensor` `[Q, H]`): states of the teacher of other examples; never receives a gradient.
        temperature, teacher_temperature (`float`): above 0.
    """
    student_EH, teacher_EH, queue_QH = (_unit(x) for x in (student_EH, teacher_EH.detach(), queue_QH.detach()))
    scores = []
    for side_EH, divisor in ((student_EH, temperature), (teacher_EH, teacher_temperature)):
        own_E1 = (side_EH * teacher_EH).sum(dim=-1, keepdim=True)
        scores.append(torch.cat([side_EH @ queue_QH.T, own_E1], dim=1) / divisor)
    log_q, p = scores[0].log_softmax(dim=-1), scores[1].softmax(dim=-1)
    return -(p * log_q).sum(dim=-1)


def _unit(states: Tensor) -> Tensor:
    return F.normalize(states, dim=-1)
