"""
How a student in an ONNX file reads a row: what `inputs` does with Transformers, by the `tokenizers` package alone.

What follows from the student and its tokenizer (special tokens, the order of classes, the longest text) is found once,
while it is exported, and stands in the file's metadata. Nothing here imports torch or Transformers.
"""

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from sinkd_llm.errors import InputError, shown
from sinkd_llm.inputs.special_tokens import fitted
from sinkd_llm.tasks.rendering import Example

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# The key of an ONNX file's metadata under which this stands, and the version of what stands there.
METADATA_KEY = "sinkd_reading"
FORMAT = 1
CLASSES, MASKED = "sequence-classification", "masked-lm"


@dataclass(frozen=True)
class OnnxReading:
    """
    How rows become what the graph reads, and its outputs scores of choices.

    Args:
        kind (`str`): `"sequence-classification"` or `"masked-lm"`, as in [`~sinkd_llm.models.load_model`].
        prefix, suffix (`tuple[int, ...]`): the tokens around a prompt; the mask is the first of a suffix.
        max_length (`int`, *optional*): longest text in tokens, the special ones among them. A prompt that is longer
            loses its beginning, a pair of texts the end of the longer one.
        cut_side (`str`): where a text of a pair is cut, `"right"` or `"left"`.
        pad_id (`int`): fills `input_ids`.
        eos_id (`int`, *optional*): stands for a text without any token.
        unknown_id (`int`, *optional*): of the token for what the vocabulary does not hold.
        classes (`tuple[int, ...]`, *optional*): the head's class of each choice; `None` for a masked model.
        alone (`bool`): rows are answered one by one. Activations that are quantised when the graph runs share one
            scale, so that the rows of a batch, and their padding, would change each other's answers.
    """

    kind: str
    prefix: tuple[int, ...]
    suffix: tuple[int, ...]
    max_length: int | None
    cut_side: str
    pad_id: int
    eos_id: int | None
    unknown_id: int | None
    classes: tuple[int, ...] | None
    alone: bool = False

    def as_text(self) -> str:
        """As it stands in the file's metadata."""
        return json.dumps({"format": FORMAT, **asdict(self)})

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str], name: str) -> "OnnxReading":
        """
        What stands in the metadata of a file.

        Args:
            metadata (`Mapping[str, str]`): of the file.
            name (`str`): of the file, for messages.

        Raises:
            InputError: if it was not written by an export of this package, or by one of a later version.
        """
        try:
            content = json.loads(metadata[METADATA_KEY])
            if content.pop("format") != FORMAT:
                raise InputError(f"{name} is of a later version of this package; update sinkd-llm.")
            lists = {key: tuple(content[key]) for key in ("prefix", "suffix")}
            classes = content["classes"]
            return cls(**{**content, **lists, "classes": None if classes is None else tuple(classes)})
        except InputError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(
                f"{name} does not say how its rows are read ({METADATA_KEY} in its metadata): it is no export of a "
                "student. Make one with 'sinkd export RUN --format onnx --output DIR'."
            ) from error


class OnnxTexts:
    """
    Examples to token ids.

    Args:
        reading ([`OnnxReading`]): of the file.
        tokenizer (`tokenizers.Tokenizer`): read from `tokenizer.json`; it is changed.

    Attributes:
        num_cut (`int`): rows that were too long so far.
    """

    def __init__(self, reading: OnnxReading, tokenizer: "Tokenizer") -> None:
        self.reading = reading
        tokenizer.no_padding()
        tokenizer.no_truncation()
        # Whether texts are cut is a state of a tokenizer, which threads share.
        self._whole, self._cut = tokenizer, type(tokenizer).from_str(tokenizer.to_str())
        if reading.max_length is not None:
            self._cut.enable_truncation(
                reading.max_length, stride=0, strategy="longest_first", direction=reading.cut_side
            )
        self.num_cut = 0
        self._single = functools.lru_cache(maxsize=4096)(self._single_token)

    def ids(self, examples: Sequence[Example]) -> tuple[list[list[int]], list[list[int]]]:
        """
        The token ids of each example, and the number of the text, 0 or 1, that each token belongs to.

        Raises:
            InputError: if `max_length` leaves no room for a prompt.
        """
        reading = self.reading
        if reading.kind == CLASSES and examples[0].text is not None:
            pairs: list[Any] = [(e.text, e.text_pair) if e.text_pair is not None else e.text for e in examples]
            encoded = self._cut.encode_batch(pairs)
            self.num_cut += sum(bool(one.overflowing) for one in encoded)
            return [one.ids for one in encoded], [one.type_ids for one in encoded]
        prompts = self._whole.encode_batch([e.prompt.rstrip() for e in examples], add_special_tokens=False)
        ids = []
        end: Any = _End(reading.eos_id)
        for prompt in prompts:
            found, cut = fitted(end, reading.prefix, prompt.ids, reading.suffix, reading.max_length)
            ids.append(found)
            self.num_cut += cut > 0
        return ids, [[0] * len(row) for row in ids]

    def choices(self, example: Example) -> list[int]:
        """
        The column of each choice in what the graph says of an example: its class, or its token at the mask.

        Raises:
            InputError: for other choices than the head's classes, or one that is several tokens.
        """
        classes = self.reading.classes
        if classes is None:
            space = example.prompt[len(example.prompt.rstrip()) :]
            return [self._single(space + choice) for choice in example.choices]
        if len(example.choices) != len(classes):
            raise InputError(
                f"{example.id} has {len(example.choices)} choices, but the student's head has {len(classes)} classes; "
                "give rows of the task that it was trained for."
            )
        return list(classes)

    def masks(self, rows: Sequence[Sequence[int]]) -> list[int]:
        """The place of the mask in each row: what follows it has a fixed length."""
        return [len(row) - len(self.reading.suffix) for row in rows]

    def _single_token(self, choice: str) -> int:
        ids = self._whole.encode(choice, add_special_tokens=False).ids
        if len(ids) != 1 or ids[0] == self.reading.unknown_id:
            raise InputError(
                f"The choice {shown(choice.strip())} is not one known token of this student, and a masked language "
                "model gives one token at the mask; give rows of the task that it was trained for."
            )
        return int(ids[0])


class _End:
    """Of a tokenizer, what [`fitted`] asks for a prompt without tokens."""

    def __init__(self, eos_token_id: int | None) -> None:
        self.eos_token_id = eos_token_id
