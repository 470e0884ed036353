"""The one exception that means: the input was wrong, and here is what to do."""

from enum import Enum
from importlib.metadata import PackageNotFoundError
from typing import Any

from sinkd_llm.secrets import masked_text

# More of a value does not help to find it, and may be a whole file that was pasted.
LONGEST_SHOWN = 120
# Of what a library says; some print all the names of a model.
LONGEST_SAID = 300


class InputError(ValueError):
    """Raised for a mistake in what the user gave: a name, a file, a row, a combination of settings.

    The message is one sentence (or two) that says what was given, why it fails and what to do. The
    command line prints it without a traceback and exits with code 2; Python code may catch it as a
    `ValueError`.
    """


class SettingError(InputError):
    """
    A setting that cannot be used. The message begins with its name, as Python and recipes write it.

    Args:
        setting (`str`): the name.
        problem (`str`): the rest of the sentence: `"is -1; give a whole number from 0 to 4,294,967,295."`
    """

    def __init__(self, setting: str, problem: str) -> None:
        super().__init__(f"{setting} {problem}")
        self.setting, self.problem = setting, problem

    def said_as(self, name: str) -> InputError:
        """The same error with the setting named as the user wrote it: `--seed`, `recipe.yaml: seed`."""
        return InputError(f"{name} {self.problem}")


class NonFiniteError(InputError):
    """Raised where a number of a run is NaN or infinite: nothing that was computed from it can be trusted."""


def shown(value: object) -> str:
    """A value as it stands in a message: as Python writes it, and not longer than a line."""
    try:
        text = repr(value)
    except ValueError:  # Python does not write out integers of more than 4,300 digits
        return f"a whole number of {int(value.bit_length() * 0.30103):,} digits"  # type: ignore[attr-defined]
    if len(text) <= LONGEST_SHOWN:
        return text
    return f"{text[:LONGEST_SHOWN]}… ({len(text):,} characters)"


def first_line(error: BaseException) -> str:
    """
    What a library said, to stand inside a sentence: the first line that holds text, without secrets and its full stop.

    A line that only announces ("1 validation error for …", "Validation error for field 'x':") brings those that follow
    it along. Where nothing was said, the name of the error stands.

    Args:
        error (`BaseException`): what was raised.

    Returns:
        `str`: one line of at most 300 characters, and `…` where more was said.
    """
    # Where a flag needs a package that is not here (--deepspeed), the package's name is a whole sentence.
    said = error.name if isinstance(error, PackageNotFoundError) else str(error)
    lines = [" ".join(line.split()) for line in said.splitlines() if line.strip(" .")] or [type(error).__name__]
    announces = lines[0].endswith(":") or "validation error" in lines[0]
    text = masked_text(" ".join(lines) if announces else lines[0]).rstrip(".")
    return text if len(text) <= LONGEST_SAID else f"{text[:LONGEST_SAID].rstrip()}…"


def plain(value: Any) -> Any:
    """A choice as it is written: the value of an `Enum`, and everything else as it is."""
    return value.value if isinstance(value, Enum) else value


def nearest(name: str, known: list[str] | tuple[str, ...], cutoff: float = 0.5) -> str:
    """
    ` Did you mean 'x'?` for the known name closest to `name`, or an empty string.

    Args:
        name (`str`): what was given.
        known (`list[str]`): what there is.
        cutoff (`float`, *optional*, defaults to `0.5`): the least similarity, in [0, 1], that is worth a question.
    """
    from difflib import get_close_matches

    matches = get_close_matches(name[:LONGEST_SHOWN], list(known), n=1, cutoff=cutoff)
    return f" Did you mean {matches[0]!r}?" if matches else ""
