"""What a teacher chose, by what it read: an evaluation row is known again, whatever its name and batch are."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sinkd_llm.errors import InputError
from sinkd_llm.teachers.questions import place_of

# The key of no row: names are in UTF-8, in which this byte is not.
_OF_NO_ROW = b"\xff"


class TeacherChoices:
    """
    What the frozen teacher chose, so that it ranks each evaluation row once.

    Rows are known by what the teacher reads, not by their names: two evaluation sets may use the same names, or none.
    Over answer choices, which student and teacher read differently, they are known as [`named_keys`] says.
    """

    def __init__(self) -> None:
        self._chosen: dict[bytes, int] = {}
        self._probabilities: dict[bytes, list[float]] = {}

    @classmethod
    def recorded(cls, score: Mapping[str, Any] | None) -> "TeacherChoices":
        """
        What a record of the teacher's score says.

        Args:
            score (`Mapping`, *optional*): with `predictions`, the chosen indices, and `keys`, the [`row_keys`] of the
                rows in hexadecimal digits, or over answer choices their names and `prints`; a record without them
                knows no row. It may have the `probabilities` of the choices of each row.
        """
        found = cls()
        if score is not None and score.get("keys") and score.get("predictions"):
            keys = [bytes.fromhex(key) for key in score["keys"]]
            if score.get("prints"):
                keys = [_with_print(key, row_print) for key, row_print in zip(keys, score["prints"], strict=True)]
            found.add(keys, score["predictions"])
            if score.get("probabilities"):
                found._probabilities.update(zip(keys, score["probabilities"], strict=True))
        return found

    def __len__(self) -> int:
        """How many rows are known."""
        return len(self._chosen)

    def missing(self, keys: Sequence[bytes]) -> bool:
        """Whether one of the rows is not known yet."""
        return any(key not in self._chosen for key in keys)

    def add(self, keys: Sequence[bytes], chosen: Sequence[int]) -> None:
        """Keeps the index of the chosen answer of each row."""
        self._chosen.update(zip(keys, chosen, strict=True))

    def of(self, keys: Sequence[bytes], counts: Sequence[int]) -> list[int]:
        """
        The index of the chosen answer of each row; -1 of a row that is not known.

        Args:
            keys (`Sequence[bytes]`): the [`row_keys`] of the rows.
            counts (`Sequence[int]`): how many choices each row has.

        Raises:
            InputError: for an index that is none of the row's choices, which only a damaged record holds.
        """
        chosen = [self._chosen.get(key, -1) for key in keys]
        for index, count in zip(chosen, counts, strict=True):
            if index >= count:
                raise InputError(
                    f"the teacher cache records choice {index} for a row with choices 0 to {count - 1}: its "
                    "manifest.json is damaged; write the cache again with --overwrite."
                )
        return chosen

    def probabilities_of(self, keys: Sequence[bytes], counts: Sequence[int]) -> list[list[float]] | None:
        """
        The probabilities of the choices of each row; `None` if those of one row are not known.

        Args:
            keys, counts: as of [`of`].

        Raises:
            InputError: for another number of probabilities than the row has choices: the record is damaged.
        """
        if any(key not in self._probabilities for key in keys):
            return None
        found = [self._probabilities[key] for key in keys]
        for row, count in zip(found, counts, strict=True):
            if len(row) != count:
                raise InputError(
                    f"the teacher cache records {len(row)} probabilities for a row with {count} choices: its "
                    "manifest.json is damaged; write the cache again with --overwrite."
                )
        return found


def why_unknown(score: Mapping[str, Any] | None) -> str:
    """
    Why a teacher cache does not know what its teacher chose for rows, in a sentence that says what to do.

    Args:
        score (`Mapping`, *optional*): the record of the teacher's score, see [`TeacherChoices.recorded`].
    """
    if score is None:
        return (
            "The teacher cache was written without the teacher's score; write it again for this metric (sinkd cache "
            "--overwrite, without --score_teacher false)."
        )
    if score.get("keys"):
        return (
            "The teacher cache does not know what the teacher chooses for all rows of this evaluation; evaluate on "
            "rows on which the teacher was scored when it was cached. (If the cache is over answer choices, the rows "
            "have ids of their own, and an earlier version wrote it, write it again: that version did not record what "
            "the rows say.)"
        )
    return (
        "The teacher cache was written by an earlier version, which did not record the rows of the teacher's choices, "
        "or on rows without choices; it has to be written again for this metric (sinkd cache --overwrite)."
    )


def choice_counts(batch: Mapping[str, Any]) -> list[int]:
    """How many choices each row of a ranking batch has."""
    return [len(tree.choices) for tree in batch["trees"]]


def name_key(name: str) -> bytes:
    """A row's name, as a record over answer choices has it among its `keys`."""
    return name.encode("utf-8", "surrogatepass")


def named_keys(
    score: Mapping[str, Any] | None, names: Sequence[str], prints: Sequence[int], *, same_rows: bool = False
) -> list[bytes]:
    """
    What a record over answer choices knows rows by: their names, and what the rows say.

    A record of an earlier version has names alone. The name that a task made for a row has a hash of its text; the ids
    of the data may be those of other rows, which such a record does not know.

    Args:
        score (`Mapping`, *optional*): the record.
        names (sequence of `str`): of the rows.
        prints (sequence of `int`): the [`~sinkd_llm.inputs.over_choices.row_print`] of each.
        same_rows (`bool`, *optional*, defaults to `False`): the rows are those of the record for another reason.
    """
    if score is not None and score.get("prints"):
        return [_with_print(name_key(name), said) for name, said in zip(names, prints, strict=True)]
    return [name_key(name) if same_rows or place_of(name) else _OF_NO_ROW for name in names]


def _with_print(name: bytes, row_print: int) -> bytes:
    return name + row_print.to_bytes(8, "little")


def row_keys(batch: Mapping[str, Any]) -> list[bytes]:
    """
    What the rows of a ranking batch say, each as a key of 16 bytes, however the batch is padded.

    Args:
        batch (`Mapping`): of the collator of any kind: the prompt's tokens, and the tokens of all choices.
    """
    present = batch["attention_mask"].cpu().numpy().astype(bool)
    read = [batch[name].cpu().numpy() for name in ("input_ids", "token_type_ids") if name in batch]
    values = batch["choice_values"].cpu().numpy() if "choice_values" in batch else None
    keys = []
    for b, tree in enumerate(batch["trees"]):
        digest = hashlib.blake2b(digest_size=16)
        for tokens in read:
            digest.update(tokens[b][present[b]].astype(np.int64).tobytes() + b"|")
        for choice in tree.choices:
            digest.update(np.asarray(choice, np.int64).tobytes() + b"/")
        if values is not None:
            digest.update(values[b][: len(tree.choices)].tobytes())
        keys.append(digest.digest())
    return keys
