"""Which layers `layer_selection` names, and whether `student_layers` fits it."""

import re
from itertools import pairwise
from typing import Any

from sinkd_llm.errors import SettingError, nearest, shown

# Beside a list of indices.
SELECTIONS = ("even", "influence", "greedy")
_LIST = re.compile(r"\s*\d{1,6}\s*(,\s*\d{1,6}\s*)*", flags=re.ASCII)
_EXAMPLE = "a list such as 0,2,5 (of an encoder-decoder 0,2,5; 0,3 for encoder and decoder)"


def layers_as_text(value: Any) -> Any:
    """An index, a list of them, or two lists, as the text that says the same; other values as they are."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, list | tuple) or not value:
        return value
    if all(isinstance(part, list | tuple) for part in value):
        return "; ".join(",".join(map(str, part)) for part in value)
    return ",".join(map(str, value))


def listed_layers(selection: str) -> list[list[int]] | None:
    """
    The indices that a `layer_selection` lists: of all layers, or of the encoder's and the decoder's.

    Args:
        selection (`str`): one of [`SELECTIONS`], or indices.

    Returns:
        `list[list[int]]` or `None`: one list or two; `None` where `selection` is a way to choose.

    Raises:
        SettingError: if it is neither.
    """
    if selection in SELECTIONS:
        return None
    parts = selection.split(";")
    if len(parts) > 2 or not all(_LIST.fullmatch(part) for part in parts):
        raise SettingError(
            "layer_selection",
            f"is {shown(selection)}; it takes {', '.join(SELECTIONS)}, or {_EXAMPLE}."
            f"{nearest(selection[:100], SELECTIONS)}",
        )
    lists = [[int(index) for index in part.split(",")] for part in parts]
    for indices in lists:
        if any(later <= earlier for earlier, later in pairwise(indices)):
            raise SettingError(
                "layer_selection",
                f"is {shown(selection)}, whose indices are not each larger than the one before; give each layer once, "
                "in the order that the layers have in the model.",
            )
    return lists


def settle_layers(args: Any) -> None:
    """
    Sets `student_layers` and `student_decoder_layers` to the numbers of layers that are listed, or checks that they
    are these.

    Args:
        args ([`SinKDConfig`]): the settings.

    Raises:
        SettingError: for a selection that is none, a single index that may be meant as a number of layers, numbers
            that do not fit the lists, and a selection of layers for a student that is not cut.
    """
    lists = listed_layers(args.layer_selection)
    if lists is None:
        if args.student_layers is None and args.layer_selection != SELECTIONS[0]:
            raise SettingError(
                "layer_selection",
                f"is {args.layer_selection}, which says how layers are chosen and not how many; set student_layers, "
                "too.",
            )
        return
    if len(lists) == len(lists[0]) == 1 and args.student_layers is None:
        raise SettingError(
            "layer_selection",
            f"is {shown(args.layer_selection)}, which lists one layer, counted from 0, and may be meant as a number "
            f"of layers. For {lists[0][0]} layers set student_layers to {lists[0][0]} instead; for a student of this "
            "one layer set student_layers to 1 as well.",
        )
    for name, indices in zip(("student_layers", "student_decoder_layers"), lists, strict=False):
        number = getattr(args, name)
        if number is not None and number != len(indices):
            raise SettingError(
                name, f"is {shown(number)}, but layer_selection lists {len(indices)} layers; leave {name} out."
            )
        setattr(args, name, len(indices))
    if len(lists) == 1 and args.student_decoder_layers not in (None, len(lists[0])):
        raise SettingError(
            "student_decoder_layers",
            f"is {shown(args.student_decoder_layers)}, but layer_selection lists {len(lists[0])} layers for encoder "
            "and decoder alike; list both, such as 0,2,5; 0,3.",
        )
