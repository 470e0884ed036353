"""Numbers that a setting may be, for the command line and for Python alike; no torch."""

import math
import numbers
from dataclasses import dataclass
from typing import Any

from sinkd_llm.errors import shown


@dataclass(frozen=True)
class Range:
    """
    Numbers that a setting may be.

    Args:
        low, high (`float`): the ends, which belong to it; infinity does not.
        above, below (`bool`, *optional*): whether `low`, or `high`, does not belong to it.
        whole (`bool`, *optional*): only whole numbers.
        null (`bool`, *optional*): in Python, `None` as well.
        shares (`bool`, *optional*): a number below 1 is a share of training, from 1 on it is a number of updates.
        also (`tuple`, *optional*): values outside that mean something.
        advice (`str`, *optional*): what to do, in place of the range in words.
    """

    low: float
    high: float = math.inf
    above: bool = False
    below: bool = False
    whole: bool = False
    null: bool = False
    shares: bool = False
    also: tuple[float, ...] = ()
    advice: str = ""

    def refusal(self, value: Any) -> str | None:
        """The rest of a sentence that begins with the setting, or `None` for a number that is fine."""
        if not _is_number(value):
            return f"is {shown(value)}, but it takes a number; {self.in_words()}."
        if value in self.also:
            return None
        if self.whole and not _is_whole(value):
            return f"is {shown(value)}, but it takes a whole number; {self.in_words()}."
        if not self._inside(value):
            return f"is {shown(value)}; {self.in_words()}."
        if self.shares and value > 1 and not float(value).is_integer():
            return f"is {shown(value)}; from 1 on it counts updates, so {self.in_words()}."
        return None

    def check(self, name: str, value: Any, why: str = "") -> None:
        """
        Refuses a value that Python code gave.

        Args:
            name (`str`): of the argument.
            value (`Any`): what it is.
            why (`str`, *optional*): ends the message.

        Raises:
            `ValueError`: for a number outside, and for what is no number.
        """
        if (value is None and self.null) or self.refusal(value) is None:
            return
        raise ValueError(f"{name} must be {'None or ' if self.null else ''}{self.numbers()}, got {shown(value)}{why}.")

    def _inside(self, value: Any) -> bool:
        inside = self.low <= value <= self.high and value != math.inf  # false for NaN
        return inside and not (self.above and value == self.low) and not (self.below and value == self.high)

    def in_words(self) -> str:
        """What to give."""
        return self.advice or f"give {self.numbers()}"

    def numbers(self) -> str:
        """The numbers that are taken."""
        if self.shares:
            first = f"{'above ' if self.above else 'from '}{_number(self.low)}"
            return f"a share of training ({first}, below 1) or a whole number from 1 to {_number(self.high)}"
        kind = f"a {'whole ' if self.whole else ''}number"
        if self.high == math.inf:
            return f"{kind} {'above' if self.above else 'of at least'} {_number(self.low)}"
        first = f"above {_number(self.low)}" if self.above else f"from {_number(self.low)}"
        last = (
            f"below {_number(self.high)}"
            if self.below
            else f"{'at most' if self.above else 'to'} {_number(self.high)}"
        )
        joined = f"{first} and {last}" if self.above or self.below else f"{first} {last}"
        others = "".join(f", or {_number(value)}" for value in self.also)
        return f"{kind} {joined}{others}"


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _is_whole(value: Any) -> bool:
    return isinstance(value, numbers.Integral) or hasattr(value, "__index__")


def _number(value: float) -> str:
    if isinstance(value, int) or float(value).is_integer():
        return f"{int(value):,}"
    return f"{value:g}"


_WEIGHT = Range(0, 1_000_000)
# A softmax at a hundredth is a choice. At more than a hundred, rounding in fp32 times the squared temperature is as
# large as the divergence itself.
_TEMPERATURE = Range(0.01, 100)
# Costs are at most 2: below, exp(-cost / epsilon) has no digits left in fp32; above, the plan is uniform.
_EPSILON = Range(0.0001, 100)
_ITERATIONS = Range(1, 100_000, whole=True)
# Cosines are at most 1: below, a softmax is a choice; above, it is uniform.
_QUEUE_TEMPERATURE = Range(0.001, 100)

# The settings of the loss, as `SinKDConfig` and `DistillationObjective` have them.
OF_THE_LOSS: dict[str, Range] = {
    "alpha": Range(0, 1),
    "temperature": _TEMPERATURE,
    "sinkhorn_weight": _WEIGHT,
    "sinkhorn_temperature": _TEMPERATURE,
    "sinkhorn_epsilon": _EPSILON,
    "sinkhorn_iterations": _ITERATIONS,
    "sinkhorn_threshold": Range(0, 1, above=True, below=True, null=True),
    "transport_group_size": Range(2, 1_000_000_000, whole=True, null=True),
    "transported_weight": _WEIGHT,
    "transported_temperature": _TEMPERATURE,
    "transported_epsilon": _EPSILON,
    "transported_iterations": _ITERATIONS,
    "transported_anchor": Range(0, 1),
    "hidden_weight": _WEIGHT,
    "queue_weight": _WEIGHT,
    "queue_size": Range(1, 10_000_000, whole=True),
    "queue_temperature": _QUEUE_TEMPERATURE,
    "queue_teacher_temperature": _QUEUE_TEMPERATURE,
}
