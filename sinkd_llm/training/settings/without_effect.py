"""Settings that are read only where another one is set, and what is said where it is not."""

from dataclasses import fields
from typing import Any

# Setting -> the weight without which nothing reads it.
_WEIGHTS = {
    **dict.fromkeys(("queue_size", "queue_temperature", "queue_teacher_temperature"), "queue_weight"),
    **dict.fromkeys(
        (
            *("transported_temperature", "transported_epsilon", "transported_iterations", "transported_anchor"),
            "transported_coupling",
        ),
        "transported_weight",
    ),
}


def without_effect(args: Any) -> list[str]:
    """
    A sentence for each reason why some of the settings have no effect. They are not refused: runs that differ in a
    weight share a recipe.

    Args:
        args ([`SinKDConfig`]): the settings.
    """
    defaults = {field.name: field.default for field in fields(args)}
    changed = [name for name in (*_WEIGHTS, "layer_selection_rows") if getattr(args, name) != defaults[name]]
    sentences = []
    for weight in dict.fromkeys(_WEIGHTS.values()):
        idle = [name for name in changed if _WEIGHTS.get(name) == weight and not getattr(args, weight)]
        if idle:
            sentences.append(f"{_have(idle)} no effect: {weight} is 0.")
    if "layer_selection_rows" in changed and args.layer_selection not in ("influence", "greedy"):
        sentences.append(
            f"layer_selection_rows has no effect: layer_selection is {args.layer_selection}, which looks at no rows "
            "(influence and greedy do)."
        )
    return sentences


def _have(names: list[str]) -> str:
    if len(names) == 1:
        return f"{names[0]} has"
    return f"{', '.join(names[:-1])} and {names[-1]} have"
