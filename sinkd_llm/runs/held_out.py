"""Training rows that are held out, to choose settings by: which rows these are follows from their text alone.

Rows of the same text are held out together, and the same ones with every seed, in every run.
"""

import hashlib
from collections.abc import Collection
from typing import TYPE_CHECKING

from sinkd_llm.inputs.over_choices import NO_LABEL

if TYPE_CHECKING:
    from datasets import Dataset

_ROWS_AT_ONCE = 1000
# Of a hash of 64 bits.
_ALL = 2**64


def hold_out(rows: "Dataset", share: float, purpose: str = "") -> "tuple[Dataset, Dataset]":
    """
    The rows to train on, and those with a label that are held out.

    Args:
        rows ([`~datasets.Dataset`]): rows of a task, or with a prompt and a completion.
        share (`float`): about so much of the rows is held out, in [0, 1).
        purpose (`str`, *optional*): which rows follow from it, too: for another purpose they are others, so that a
            second share can be held out of the rest. At most 16 bytes.

    Returns:
        `tuple[Dataset, Dataset]`: rows without a label are in the first one, unless a held-out row has their text.
    """
    if not share:
        return rows, rows.select([])
    keys = _keys(rows, purpose)
    labels = rows["label"][:] if "label" in rows.column_names else [None] * len(rows)
    held = [i for i, key in enumerate(keys) if key < share * _ALL and labels[i] != NO_LABEL]
    taken = {keys[i] for i in held}
    return rows.select([i for i, key in enumerate(keys) if key not in taken]), rows.select(held)


def without_texts_of(rows: "Dataset", held_out: "Dataset") -> "Dataset":
    """The rows but those with the text of a held-out one."""
    taken: Collection[int] = {*_keys(held_out)}
    kept = [i for i, key in enumerate(_keys(rows)) if key not in taken]
    return rows if len(kept) == len(rows) else rows.select(kept)


def smallest(rows: "Dataset", count: int) -> "Dataset":
    """So many of the rows, the same ones in every run: those whose hash is smallest."""
    keys = _keys(rows)
    return rows.select(sorted(sorted(range(len(rows)), key=keys.__getitem__)[:count]))


def _keys(rows: "Dataset", purpose: str = "") -> list[int]:
    """A hash of each row's text: what is read of the data, where the task says so, before a prompt is made of it."""
    columns = [name for name in ("text", "text_pair") if name in rows.column_names] or ["prompt"]
    keys = []
    for batch in rows.select_columns(columns).iter(_ROWS_AT_ONCE):
        for texts in zip(*(batch[name] for name in columns), strict=True):
            said = "\x1f".join(str(text or "") for text in texts)
            text = said.encode("utf-8", "surrogatepass")
            digest = hashlib.blake2b(text, digest_size=8, person=purpose.encode()).digest()
            keys.append(int.from_bytes(digest, "little"))
    return keys
