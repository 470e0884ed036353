"""What libraries raise: whether the memory is full, and which setting an error is about while a run is set up."""

import os
import re
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, fields
from typing import Any

from sinkd_llm.errors import InputError, SettingError, first_line, plain, shown
from sinkd_llm.secrets import MASK, is_secret_name

# What libraries call a setting in their messages.
_SAID_AS = {"r": "lora_r", "rank": "lora_r", "target_modules": "lora_target_modules", "alpha_lora": "lora_alpha"}
_SAID_AS |= {"modules_to_save": "lora_modules_to_save", "target_parameters": "lora_target_parameters"}
_SAID_AS |= {"task_type": "lora_task_type", "use_gpu": "use_cpu"}


_MEMORY_IS_FULL = ("out of memory", "can't allocate memory", "not enough memory")


def is_memory_full(error: BaseException) -> bool:
    """Whether an error says that a device has no memory left: that is no fault of what was being read or set up."""
    return isinstance(error, MemoryError) or any(words in str(error).lower() for words in _MEMORY_IS_FULL)


@contextmanager
def naming_settings(*arguments: Any) -> Iterator[None]:
    """
    Turns what a library raises while a run is being set up into an error that names the setting.

    Args:
        arguments (`Any`): dataclasses of settings.

    Raises:
        InputError: for an error that comes from a library; one of this package itself passes as it is.
    """
    try:
        yield
    except (InputError, OSError):
        raise
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        ours = os.path.dirname(os.path.abspath(__file__))
        if (frames and frames[-1].filename.startswith(ours + os.sep)) or is_memory_full(error):
            raise
        name = _mentioned(str(error), arguments)
        library = _library(frames[-1].filename if frames else "")
        if name is None:
            raise InputError(f"{library} refuses these settings: {first_line(error)}.") from error
        value = next(getattr(one, name) for one in arguments if hasattr(one, name))
        given = MASK if is_secret_name(name) else shown(plain(value))
        raise SettingError(name, f"is {given}, which {library} refuses: {first_line(error)}.") from error


def _mentioned(text: str, arguments: Sequence[Any]) -> str | None:
    """The setting that a message is about: one that it names, before others one that was changed."""
    known = {}
    for one in arguments:
        for field in fields(one):
            default = field.default_factory() if field.default_factory is not MISSING else field.default
            known[field.name] = plain(getattr(one, field.name, default)) != plain(default)
    quoted = re.findall(r"[`'\"](\w+)[`'\"]", text)
    words = [word for word in re.findall(r"\w+", text) if "_" in word or word in ("fp16", "bf16", "tf32", "deepspeed")]
    found = [_SAID_AS.get(word, word) for word in quoted + words]
    named = [word for word in found if word in known]
    return next((word for word in named if known[word]), named[0] if named else None)


def _library(path: str) -> str:
    parts = path.replace(os.sep, "/").split("/site-packages/")
    name = parts[-1].split("/")[0] if len(parts) > 1 else ""
    return name.removesuffix(".py") or f"Python {sys.version_info.major}.{sys.version_info.minor}"
