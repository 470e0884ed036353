"""What other libraries say when they cannot read a model, as one message of ours."""

import contextlib
from collections.abc import Iterator

from sinkd_llm.errors import InputError
from sinkd_llm.models.names import ModelSource, hub_error, what_was_said
from sinkd_llm.quiet import quiet_transformers


@contextlib.contextmanager
def reading(source: ModelSource, what: str) -> Iterator[None]:
    """
    Within, a library reads files of `source`, quietly; whatever it raises becomes an [`InputError`] with its words.

    Files of strangers lead libraries to errors of any type. An exhausted memory is no fault of the files and passes.

    Args:
        source ([`ModelSource`]): what is read.
        what (`str`): as in "`what` in `path` cannot be read".

    Raises:
        InputError: with what the library said, and for a missing package its name.
    """
    try:
        with quiet_transformers():
            yield
    except (InputError, MemoryError):
        raise
    except ImportError as error:
        raise InputError(
            f"{what} of {source.name!r} needs a Python package that is missing here: "
            f"{what_was_said(error)}. Install it, or "
            "give a save of the model that does without, such as one that is not quantised."
        ) from error
    except Exception as error:
        if "out of memory" in str(error):
            raise
        if source.kind == "hub":
            raise hub_error(source, error) from error
        raise InputError(f"{what} in {source.path} cannot be read: {what_was_said(error)}.") from error
