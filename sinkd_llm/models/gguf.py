"""GGUF files as ordinary Transformers folders.

Transformers reads a GGUF file in Python: SmolLM2-135M takes 7 to 15 s and its tokenizer 4 to 6 s, on
every start and in every process. It also marks the result as quantised, refuses to save it, and hands
it no further quantisation. So the file is converted once, into a folder of the user's cache, and that
folder is what is loaded: an ordinary model, in 0.3 s.
"""

import contextlib
import hashlib
import logging
import shutil
import sys
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from sinkd_llm.errors import InputError
from sinkd_llm.files import cache_dir
from sinkd_llm.library_errors import is_memory_full
from sinkd_llm.models.foreign import missing_package, what_was_said
from sinkd_llm.models.names import ModelSource
from sinkd_llm.models.partitioning import whole_weights
from sinkd_llm.models.placing import give_ordinary_modes
from sinkd_llm.models.quantisation import forget_packing
from sinkd_llm.quiet import quiet_transformers
from sinkd_llm.terminal import progress
from sinkd_llm.units import format_bytes, format_duration

# Measured on one thread of a server of 2023: a vocabulary of 262,144 tokens and weights of 4 bits.
_SECONDS = {"tokenizer": (1.0, 0.045), "model": (8.0, 0.04)}  # of a file without content, and of each megabyte
# Smaller files are converted in a few seconds.
_TOLD_FROM = 10_000_000

logger = logging.getLogger(__name__)


def converted_model(source: ModelSource, dtype: str) -> Path:
    """Folder with the model of a GGUF `source`, dequantised to `dtype`; converted on first use.

    Raises:
        InputError: if the file is damaged, its type of model is unknown to Transformers, it is no language model or
            not a whole one, or the cache cannot be written.
    """

    def convert(folder: Path) -> None:
        import transformers

        from sinkd_llm.models.completeness import check_complete
        from sinkd_llm.models.kinds.choose import KINDS, choose_kind

        config = transformers.AutoConfig.from_pretrained(source.path, gguf_file=source.gguf_file)
        kind = choose_kind(source.name, config, None, new_head=False)
        auto: Any = getattr(transformers, KINDS[kind].auto_class)
        model, info = auto.from_pretrained(
            source.path, config=config, gguf_file=source.gguf_file, dtype=dtype, output_loading_info=True
        )
        check_complete(source.name, kind, model, info, None)
        forget_packing(model)  # its weights are plain `dtype` now
        if hasattr(model.config, "_model_name_or_path"):  # the file's title, in GGUF metadata
            del model.config._model_name_or_path
        # Transformers saves in the first process of a launch alone; here it is whichever came to the lock first.
        model.should_save_on_this_rank = lambda is_main_process: True
        model.save_pretrained(folder)

    return _converted(source, dtype, convert)


def converted_tokenizer(source: ModelSource) -> Path:
    """Folder with the tokenizer of a GGUF `source`; converted on first use. Raises as `converted_model`."""

    def convert(folder: Path) -> None:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(source.path, gguf_file=source.gguf_file)
        _restore_pre_tokenizer(tokenizer, Path(source.path) / str(source.gguf_file))
        tokenizer.save_pretrained(folder)

    return _converted(source, "tokenizer", convert)


def _restore_pre_tokenizer(tokenizer: Any, file: Path) -> None:
    """Splits digits one by one where the file says so, which Transformers' converter overlooks.

    Without it "  12" becomes other tokens than the ones the SmolLM models were trained on.
    """
    from tokenizers import pre_tokenizers

    with file.open("rb") as stream:
        if b"tokenizer.ggml.pre" not in (head := stream.read(1 << 24)):
            return
    # key, value type (uint32), length (uint64), value
    start = head.index(b"tokenizer.ggml.pre") + len(b"tokenizer.ggml.pre") + 4
    length = int.from_bytes(head[start : start + 8], "little")
    if head[start + 8 : start + 8 + length] == b"smollm":
        backend = tokenizer.backend_tokenizer
        digits = pre_tokenizers.Digits(individual_digits=True)
        backend.pre_tokenizer = pre_tokenizers.Sequence([digits, backend.pre_tokenizer])


def _converted(source: ModelSource, part: str, convert: Callable[[Path], None]) -> Path:
    """The cached folder of one `part` of a GGUF file, made by `convert` if it is not there yet."""
    import transformers
    from filelock import FileLock

    file = Path(source.path) / str(source.gguf_file)
    stat = file.stat()
    # Another file of the same path, or another version of the converter, is another conversion.
    identity = f"{file}|{stat.st_size}|{stat.st_mtime_ns}|{transformers.__version__}|2"
    digest = hashlib.sha256(identity.encode()).hexdigest()[:12]
    target = cache_dir() / "gguf" / f"{file.stem}-{digest}" / part
    if target.is_dir():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # The lock keeps the ranks of a distributed job from converting side by side; the rename makes
        # a folder appear whole or not at all.
        with FileLock(f"{target}.lock"):
            if not target.is_dir():
                logger.info("Converting %s to an ordinary %s, once.", file.name, part)
                temporary = target.parent / f"{part}.partial"
                shutil.rmtree(temporary, ignore_errors=True)  # of a run that was killed
                temporary.mkdir()
                try:
                    _run_quietly(convert, temporary, source, part)
                    give_ordinary_modes(temporary)
                    temporary.replace(target)
                finally:
                    shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        if error.filename is not None and Path(str(error.filename)) == file:
            raise InputError(
                f"{file} cannot be read: {error.strerror or error}. Check who may read it, and the disk that it is on."
            ) from error
        raise InputError(
            f"Cannot write the converted copy of {file.name} to {target.parent}: "
            f"{error.strerror or error}. Free some space, or point the environment variable "
            "SINKD_CACHE_DIR to a folder that can be written."
        ) from error
    return target


def _run_quietly(convert: Callable[[Path], None], folder: Path, source: ModelSource, part: str) -> None:
    """
    Runs a conversion; what fails is told as what it is, and as damage only where the file's bytes are wrong.

    Raises:
        OSError: of the system, and for a full disk. A full memory and an interrupt pass as they are, too.
        InputError: for a missing package, a damaged file, and one that Transformers cannot convert.
    """
    from safetensors import SafetensorError

    file = Path(source.path) / str(source.gguf_file)
    try:
        kind = "tokenizer" if part == "tokenizer" else "model"
        seconds, each = _SECONDS[kind]
        size = file.stat().st_size
        about = format_duration(seconds + each * size / 1e6)
        title = f"Converting {file.name} ({format_bytes(size)}) to an ordinary {kind}, once, in about {about}"
        told: Any = progress(title) if size >= _TOLD_FROM else contextlib.nullcontext(lambda done, total: None)
        with told as report, _read_once(report), quiet_transformers(stderr=True), whole_weights():
            convert(folder)
    except SafetensorError as error:  # only writing gets here: the disk is full
        raise OSError(str(error)) from error
    except InputError:
        raise
    except ImportError as error:
        raise missing_package(source, f"The {part}", error) from error
    except Exception as error:
        if is_memory_full(error) or (isinstance(error, OSError) and error.errno is not None):  # not Transformers' own
            raise
        # The GGUF reader has no error of its own: a damaged file ends in whatever its bytes lead to.
        said = what_was_said(error)
        if (damage := _damage_of(file)) is not None:
            raise InputError(
                f"{file} cannot be read as a GGUF language model ({damage}): the file is damaged or cut short. "
                "Download it again, or give the model as a folder with safetensors."
            ) from error
        raise InputError(
            f"{file} is a whole GGUF file, but Transformers cannot convert it to a model of its own ({said}). If it "
            "does not know the architecture or a type of numbers, a newer Transformers may; or give the model as a "
            "folder with safetensors."
        ) from error


@contextlib.contextmanager
def _read_once(report: Callable[[int, int], None]) -> Iterator[None]:
    """
    Let Transformers read the header of a file once, without a view of a file for each word of a vocabulary, and report
    each tensor that it unpacks.

    Transformers asks for the reader whenever it needs a part, and gguf makes three views of a file mapped into memory
    for each of the tokens: a minute for 262,144 of them.
    """
    import gguf
    import numpy as np

    reader_class, dequantize, stderr = gguf.GGUFReader, gguf.dequantize, sys.stderr

    class Reader(reader_class):  # type: ignore[misc, valid-type]
        @property
        def data(self) -> Any:
            return self.__dict__["data"]

        @data.setter
        def data(self, mapped: Any) -> None:
            self.__dict__["data"] = mapped.view(np.ndarray)  # the same bytes; a view of these costs a third

    made: list[Any] = []
    done = 0

    @lru_cache(maxsize=1)
    def read(path: str) -> Any:
        made[:] = [Reader(path)]
        return made[0]

    def unpacked(*args: Any, **kwargs: Any) -> Any:
        nonlocal done
        done += 1
        with contextlib.redirect_stderr(stderr):  # what Transformers prints goes nowhere meanwhile
            report(done, len(made[0].tensors) if made else done)
        return dequantize(*args, **kwargs)

    gguf.GGUFReader, gguf.dequantize = (lambda path, *args: read(str(path))), unpacked  # type: ignore[misc, assignment]
    try:
        yield
    finally:
        gguf.GGUFReader, gguf.dequantize = reader_class, dequantize  # type: ignore[misc]


def _damage_of(file: Path) -> str | None:
    """What is wrong with the bytes of a GGUF file; `None` if its header and all its tensors are there."""
    from gguf import GGUFReader

    try:
        reader = GGUFReader(file)
        ends = [int(tensor.data_offset) + int(tensor.n_bytes) for tensor in reader.tensors]
    except Exception as error:  # as said above, of any type
        if is_memory_full(error):
            raise
        return f"{type(error).__name__}: {what_was_said(error)}"
    if max(ends, default=0) > file.stat().st_size:
        return "it ends before its last tensor does"
    return None if ends else "it holds no tensor"
