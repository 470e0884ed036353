"""A model's files, as other people wrote them: fetched and read; whatever a library raises becomes one message."""

import contextlib
from collections.abc import Iterator

from sinkd_llm.errors import InputError, first_line
from sinkd_llm.library_errors import is_memory_full
from sinkd_llm.models.names import BASE_FOLDER, WHAT_CAN_BE_GIVEN, ModelSource, resolve_model_source
from sinkd_llm.quiet import quiet_transformers


def fetch_adapter(source: ModelSource) -> ModelSource:
    """`source`, or the local copy of a hub repository that holds a PEFT adapter instead of a model.

    Raises:
        InputError: if the repository cannot be read, or its adapter is not complete.
    """
    if source.kind != "hub":
        return source
    from huggingface_hub import snapshot_download
    from transformers.utils.peft_utils import find_adapter_config_file

    try:
        if find_adapter_config_file(source.path, revision=source.revision) is None:
            return source
        folder = snapshot_download(
            source.path,
            revision=source.revision,
            # The adapter, its tokenizer and its base; not the optimiser states that some upload.
            allow_patterns=[
                "adapter_model.safetensors",
                f"{BASE_FOLDER}/*",
                "*.json",
                "*.model",
                "*.txt",
                "*.jinja",
            ],
        )
    except (OSError, ValueError) as error:
        raise hub_error(source, error) from error
    return resolve_model_source(folder)


def hub_error(source: ModelSource, error: Exception) -> InputError:
    """The error for a hub id that could not be read, with what the library said."""
    return InputError(
        f"{source.name!r} is no local folder and could not be loaded from the model hub: {what_was_said(error)}. "
        f"{WHAT_CAN_BE_GIVEN}"
    )


def what_was_said(error: Exception) -> str:
    """What another library said, in a line, and the flag it asks for where it would run foreign code."""
    said = first_line(error)
    if isinstance(error, (KeyError, AttributeError, IndexError, ZeroDivisionError, TypeError)):
        said = f"{type(error).__name__}: {said}"  # "'x'" alone says nothing
    if "trust_remote_code" in str(error):
        return f"it comes with code of its own, which runs only with --trust_remote_code ({said})"
    return said


def missing_package(source: ModelSource, what: str, error: ImportError) -> InputError:
    """The error where files of `source` need a package that is not here; `what` as in [`reading`]."""
    return InputError(
        f"{what} of {source.name!r} needs a Python package that is missing here: {what_was_said(error)}. Install it, "
        "or give a save of the model that does without, such as one that is not quantised."
    )


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
    except InputError:
        raise
    except ImportError as error:
        raise missing_package(source, what, error) from error
    except Exception as error:
        if is_memory_full(error):
            raise
        if source.kind == "hub":
            raise hub_error(source, error) from error
        raise InputError(f"{what} in {source.path} cannot be read: {what_was_said(error)}.") from error
