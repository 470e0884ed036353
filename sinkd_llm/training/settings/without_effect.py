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
    if _problems_have_one_row(args) and (across := args.objective().terms_across_rows):
        sentences.append(
            "per_device_train_batch_size is 1, and over the answer choices every row is then a transport problem by "
            f"itself: {' and '.join(across)} {'compare' if len(across) > 1 else 'compares'} row by row, the control "
            "without transport. Set it to more for transport."
        )
    return sentences


def _problems_have_one_row(args: Any) -> bool:
    """Whether batches are too small for transport, as far as the settings tell: over tokens a row of the data has
    several rows, and whether a cache holds tokens they do not tell."""
    over_choices = args.signal == "choices" or args.teacher_file is not None or args.teacher_url is not None
    joined = (args.transport_accumulation and args.gradient_accumulation_steps > 1) or (
        args.transport_across_devices and args.world_size > 1
    )
    # Of the scopes sequence and group it is said where the rows are looked at.
    of_batch = args.transport_scope in ("batch", "position") and args.per_device_train_batch_size == 1
    return over_choices and of_batch and not joined


def _have(names: list[str]) -> str:
    if len(names) == 1:
        return f"{names[0]} has"
    return f"{', '.join(names[:-1])} and {names[-1]} have"
