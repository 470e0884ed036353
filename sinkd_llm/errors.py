"""The one exception that means: the input was wrong, and here is what to do."""


class InputError(ValueError):
    """Raised for a mistake in what the user gave: a name, a file, a row, a combination of settings.

    The message is one sentence (or two) that says what was given, why it fails and what to do. The
    command line prints it without a traceback and exits with code 2; Python code may catch it as a
    `ValueError`.
    """


class NonFiniteError(InputError):
    """Raised where a number of a run is NaN or infinite: nothing that was computed from it can be trusted."""


def nearest(name: str, known: list[str] | tuple[str, ...]) -> str:
    """` Did you mean 'x'?` for the known name closest to `name`, or an empty string."""
    from difflib import get_close_matches

    matches = get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" Did you mean {matches[0]!r}?" if matches else ""
