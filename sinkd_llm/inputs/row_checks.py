"""What a row to train on or to rank may hold: checked once, before it becomes tokens, by its id or number."""

from collections.abc import Mapping
from typing import Any
from unicodedata import normalize

from sinkd_llm.errors import InputError
from sinkd_llm.values import check_text, plain, shown, without_text

Row = dict[str, Any]
# The columns of prompt-completion rows that are read; others stay what they are, the user's.
READ_COLUMNS = ("id", "prompt", "completion", "choices", "label", "target", "text", "text_pair")


def row_name(row: Mapping[str, Any], index: int) -> str:
    """The row's own id, or its number."""
    value = plain(row.get("id"))
    return f"row {index}" if without_text(value) else str(value)


def checked_row(row: Mapping[str, Any], name: str) -> Row:
    """
    The row with what is read of it checked.

    Args:
        row (`Mapping[str, Any]`): with `prompt` and `completion`, both texts or both conversations, and perhaps
            `choices` and `label`. A label without choices is the user's own and not looked at.
        name (`str`): what messages call it.

    Returns:
        `dict[str, Any]`: a copy; `label` is an `int`, and messages have no empty keys.

    Raises:
        InputError: for a prompt or completion that is null, a number or text that cannot be encoded, a message
            without role or content, choices that are no different texts or follow a conversation, and a label that is
            missing or none of them.
    """
    checked = dict(row)
    checked["prompt"] = _text_or_messages(row["prompt"], "prompt", name)
    if "completion" in row and not (row["completion"] is None and row.get("choices") is not None):
        checked["completion"] = _text_or_messages(row["completion"], "completion", name)
        if isinstance(checked["prompt"], str) != isinstance(checked["completion"], str):
            kinds = ["text" if isinstance(checked[key], str) else "a conversation" for key in ("prompt", "completion")]
            raise InputError(
                f"The prompt of {name} is {kinds[0]} and its completion {kinds[1]}; give two texts or two "
                "conversations."
            )
    if "choices" in row:
        if not isinstance(checked["prompt"], str):
            raise InputError(
                f"{name} has choices, and its prompt is a conversation, after which none are ranked; give prompt and "
                "completion as texts (apply_chat_template makes the prompt a user's turn), or drop 'choices'."
            )
        checked |= _checked_choices(row, name)
        gold, said = checked["choices"][checked["label"]], checked.get("completion")
        if said is None or not said.strip():
            checked["completion"] = gold
        elif normalize("NFC", said.strip()) != normalize("NFC", gold.strip()):
            raise InputError(
                f"The completion of {name} is {shown(said)}, and its label says that the choice {shown(gold)} is "
                "right; correct one of them, or leave out the completion (null)."
            )
    return checked


def _checked_choices(row: Mapping[str, Any], name: str) -> Row:
    choices = plain(row["choices"])
    if not isinstance(choices, list | tuple) or not choices or not all(isinstance(choice, str) for choice in choices):
        raise InputError(f"The choices of {name} are {shown(choices)}; give a list of texts in every row.")
    for choice in choices:
        check_text(choice, "The column 'choices'", name)
    words = [choice.strip() for choice in choices]
    if len({*words}) < len(words):
        double = next(word for word in words if words.count(word) > 1)
        raise InputError(f"The choices of {name} hold {shown(double)} more than once; choices must differ.")
    if "label" not in row:
        raise InputError(
            f"{name} has choices, but no label; give a column 'label' with the index of the right one, or drop "
            "'choices'."
        )
    return {"choices": list(choices), "label": _checked_label(row, len(choices), name)}


def _checked_label(row: Mapping[str, Any], count: int, name: str) -> int:
    label = plain(row["label"])
    if label is None or label != label or label == -1:
        raise InputError(
            f"{name} has no label ({'null' if label is None else shown(label)}), as in the test splits of GLUE and "
            "SuperGLUE; use a labelled split, or drop the row."
        )
    if isinstance(label, float) and label.is_integer():
        label = int(label)
    if not isinstance(label, int) or isinstance(label, bool) or not 0 <= label < count:
        raise InputError(
            f"The label of {name} is {shown(label)}; it should be the index of one of its {count} choices, from 0 to "
            f"{count - 1}."
        )
    return label


def _text_or_messages(value: Any, column: str, name: str) -> Any:
    value = plain(value)
    if isinstance(value, str):
        return check_text(value, f"The column {column!r}", name)
    if not isinstance(value, list | tuple):
        what = without_text(value) or f"{shown(value)} ({type(value).__name__})"
        raise InputError(f"The {column} of {name} is {what}, not text; correct the row, or drop it.")
    return [_message(message, i, column, name) for i, message in enumerate(value)]


def _message(message: Any, index: int, column: str, name: str) -> Row:
    place = f"Message {index} of the {column} of {name}"
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise InputError(f'{place} is {shown(message)}; a message looks like {{"role": "user", "content": "…"}}.')
    # Arrow gives every message the keys of all others, as nulls.
    kept = {key: value for key, value in message.items() if value is not None}
    content = kept.get("content")
    if content is None and not kept.get("tool_calls"):
        raise InputError(f"{place} ({message['role']}) has no content: it is null; correct the row, or drop it.")
    if content is not None and not isinstance(content, str | list):
        raise InputError(f"{place} has the content {shown(content)} ({type(content).__name__}), not text.")
    if isinstance(content, str):
        check_text(content, f"The column {column!r}", name)
    return kept
