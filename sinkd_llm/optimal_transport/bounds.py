"""Numbers that a setting may be, and how every other value is refused."""

import math
import numbers
from dataclasses import dataclass
from typing import Any

from sinkd_llm.errors import shown


@dataclass(frozen=True)
class Bound:
    """
    Finite numbers that a setting may be; a boolean is none.

    Args:
        low, high (`float`): the ends, which belong to it.
        above, below (`bool`, *optional*): whether `low`, or `high`, does not belong to it.
        whole (`bool`, *optional*): only whole numbers.
        null (`bool`, *optional*): `None` as well.
    """

    low: float
    high: float = math.inf
    above: bool = False
    below: bool = False
    whole: bool = False
    null: bool = False

    def check(self, name: str, value: object, why: str = "") -> None:
        """
        Refuses a value.

        Args:
            name (`str`): by which users know the setting.
            value (`object`): what they gave.
            why (`str`, *optional*): ends the message.

        Raises:
            `ValueError`: for another number, and for what is no number.
        """
        if not self._holds(value):
            raise ValueError(f"{name} must be {self.in_words()}, got {shown(value)}{why}.")

    def _holds(self, value: object) -> bool:
        if value is None:
            return self.null
        if isinstance(value, bool) or not isinstance(value, numbers.Integral if self.whole else numbers.Real):
            return False
        number: Any = value  # not as a float, which the largest integers are not
        inside = self.low <= number <= self.high and number != math.inf  # false for NaN
        return inside and not (self.above and number == self.low) and not (self.below and number == self.high)

    def in_words(self) -> str:
        """The numbers that are taken."""
        kind = f"{'None or ' if self.null else ''}a {'whole ' if self.whole else ''}number"
        low, high = (f"{end:,.10g}" for end in (self.low, self.high))
        first = f"above {low}" if self.above else f"of at least {low}"
        if self.high == math.inf:
            return f"{kind} {first}"
        if not (self.above or self.below):
            return f"{kind} from {low} to {high}"
        return f"{kind} {first} and {f'below {high}' if self.below else f'of at most {high}'}"
