"""What numbers the settings of the loss may be."""

from dataclasses import fields
from typing import Any

from sinkd_llm.optimal_transport import Bound

_WEIGHT = Bound(0, 1_000_000)
# A softmax at a hundredth is a choice. At more than a hundred, rounding in fp32 times the squared temperature is as
# large as the divergence itself.
_TEMPERATURE = Bound(0.01, 100)
# Costs are at most 2: below, exp(-cost / epsilon) has no digits left in fp32; above, the plan is uniform.
_EPSILON = Bound(0.0001, 100)
_ITERATIONS = Bound(1, 100_000, whole=True)
# Cosines are at most 1: below, a softmax is a choice; above, it is uniform.
_QUEUE_TEMPERATURE = Bound(0.001, 100)

# The training's own table has the same numbers, because the command line reads it without torch; a test holds the two
# against each other.
BOUNDS: dict[str, Bound] = {
    "alpha": Bound(0, 1),
    "temperature": _TEMPERATURE,
    "sinkhorn_weight": _WEIGHT,
    "sinkhorn_temperature": _TEMPERATURE,
    "sinkhorn_epsilon": _EPSILON,
    "sinkhorn_iterations": _ITERATIONS,
    "sinkhorn_threshold": Bound(0, 1, above=True, below=True, null=True),
    "transport_group_size": Bound(2, 1_000_000_000, whole=True, null=True),
    "transported_weight": _WEIGHT,
    "transported_temperature": _TEMPERATURE,
    "transported_epsilon": _EPSILON,
    "transported_iterations": _ITERATIONS,
    "transported_anchor": Bound(0, 1),
    "hidden_weight": _WEIGHT,
    "queue_weight": _WEIGHT,
    "queue_size": Bound(1, 10_000_000, whole=True),
    "queue_temperature": _QUEUE_TEMPERATURE,
    "queue_teacher_temperature": _QUEUE_TEMPERATURE,
}
_WHY = {"transport_group_size": ": a group of one row has nothing to transport"}


def check_numbers(settings: Any) -> None:
    """
    Holds each setting that is a number against `BOUNDS`.

    Args:
        settings (`Any`): a dataclass of settings.

    Raises:
        `ValueError`: for the first one out of its range, or of another type.
    """
    for setting in fields(settings):
        if (bound := BOUNDS.get(setting.name)) is not None:
            bound.check(setting.name, getattr(settings, setting.name), _WHY.get(setting.name, ""))


def check_kind(name: str, value: object, kind: type) -> None:
    """
    Refuses settings that are not the dataclass that has them.

    Raises:
        `ValueError`: with what to give.
    """
    if isinstance(value, kind):
        return
    how = f"give {kind.__name__}(...)"
    if isinstance(value, dict):
        how = f"give {kind.__name__}(**{name})"
    elif value is None:
        how = "leave it out for the defaults"
    raise ValueError(f"{name} must be a {kind.__name__}, got {type(value).__name__}; {how}.")
