"""Which rows a student answers itself, and which it passes on: a threshold on its confidence, with a guarantee."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

ANSWER, ASK = "answer", "ask"


@dataclass(frozen=True)
class Route:
    """
    From which confidence on a student's answer is taken, and what is known of the answers that are.

    Args:
        threshold (`float`): the least probability of a choice with which the student answers, in [0, 1]; above 1, it
            passes all rows on.
        target (`float`): the share of its answers that shall be right, in (0, 1).
        of (`str`): what right is: `"agreement"` with the teacher or `"accuracy"`.
        measured (`dict`, *optional*): by what it was chosen, and how it does on other rows.
    """

    threshold: float
    target: float
    of: str
    measured: Mapping[str, Any] = field(default_factory=dict)

    def decision(self, probability: float) -> str:
        """`"answer"` or `"ask"`, by the probability of the choice that the student makes."""
        return ANSWER if probability >= self.threshold else ASK
