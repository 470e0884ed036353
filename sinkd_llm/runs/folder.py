"""The folder of a run: may it be used, who writes to it, and what becomes of an earlier run in it."""

import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from sinkd_llm.errors import InputError
from sinkd_llm.files import bytes_under
from sinkd_llm.locks import LOCK_FILES, folder_lock, refuse_if_locked
from sinkd_llm.report.predictions import PREDICTIONS_FILE
from sinkd_llm.report.results import METRICS_FILE, REPORT_FILE, RESULTS_FILE, is_finished
from sinkd_llm.report.transport_plan import PLAN_FILE
from sinkd_llm.runs.inputs import Input, check_path, refuse_inputs, user_path
from sinkd_llm.terminal import say
from sinkd_llm.training.checkpoints import CHECKPOINT, checkpoints, last_whole

# Where an earlier run waits, inside the folder, until the new one is whole: no other place is sure to be on the same
# disk and writable.
_ASIDE = ".replaced-"
# What Transformers, PEFT and this package write of a model and its tokenizer.
_MODEL_FILE = re.compile(
    r"(generation_|adapter_|tokenizer_|processor_|preprocessor_)?config\.json|.*\.safetensors(\.index\.json)?"
    r"|sinkd_\w+\.json|tokenizer\.(json|model)|vocab\.(json|txt)|merges\.txt|special_tokens_map\.json"
    r"|added_tokens\.json|chat_template\.(jinja|json)|(sentencepiece\.bpe|spiece)\.model|training_args\.bin"
)
_WEIGHTS = re.compile(r".*\.(safetensors|bin|gguf|pt|pth)|(adapter_)?config\.json")
# What a run writes beside its model.
RECORDS = (RESULTS_FILE, METRICS_FILE, REPORT_FILE, PREDICTIONS_FILE, PLAN_FILE)
_ANOTHER = "give another --output_dir"


def check_output_dir(
    output_dir: str | Path,
    *,
    overwrite: bool,
    checkpoint: Path | None,
    inputs: Iterable[Input] = (),
) -> Path:
    """
    The folder of a run, if the run may have it. Nothing is written.

    Args:
        output_dir (`str` or `Path`): the folder.
        overwrite (`bool`): whether an earlier run in it may be replaced.
        checkpoint (`Path`, *optional*): what the run goes on from; one in this very folder continues its run.
        inputs (`Iterable[Input]`, *optional*): what the run reads.

    Raises:
        InputError: if the folder is a file, or cannot be made; if it is, lies in or holds something that the run
            reads; if it holds files that are no run's, and that a run would write over; if it holds another run and
            `overwrite` is not set; or if another process writes to it.
    """
    if not str(output_dir).strip():
        raise InputError("--output_dir is empty; give the folder that the model is to be written to.")
    flag = "--output_dir"
    folder = user_path(flag, output_dir)
    check_path(f"{flag} {folder}", folder)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{flag} {folder} is a file; give a folder.")
    refuse_inputs(flag, folder, inputs)
    if not is_in(checkpoint, folder):
        _refuse_earlier(folder, overwrite)
        _refuse_others(folder)
    _refuse_shared(folder)
    refuse_if_locked(folder, f"wait for it, or {_ANOTHER}")
    return folder


def is_in(checkpoint: Path | None, folder: Path) -> bool:
    """Whether a checkpoint is one of the run in `folder`."""
    return checkpoint is not None and checkpoint.resolve().parent == folder.resolve()


def _of_others(folder: Path) -> str | None:
    """What of a folder is nobody's to write over, because no run says that it is its own."""
    if not folder.is_dir() or is_run(folder):
        return None
    names = [entry.name for entry in folder.iterdir() if entry.name not in LOCK_FILES]
    record = next((name for name in names if name in RECORDS), None)
    model = next((name for name in sorted(names) if _MODEL_FILE.fullmatch(name) or _WEIGHTS.fullmatch(name)), None)
    saved = next((c for c in checkpoints(folder) if not (c / "sinkd_manifest.json").exists()), None)
    base = "base" if (folder / "base").exists() else None
    return record or model or base or (saved.name if saved is not None else None)


def _refuse_others(folder: Path) -> None:
    """A folder with files that are nobody's to write over."""
    if (found := _of_others(folder)) is not None:
        raise InputError(
            f"--output_dir {folder} holds {found}, and no {RESULTS_FILE} of a run says that it may be written over; "
            f"{_ANOTHER}, or move it away."
        )


def _refuse_shared(folder: Path) -> None:
    """A folder that other things live in as well: home, the root, and the working folder where it holds more."""
    if not folder.is_dir():
        return
    resolved, here = folder.resolve(), Path.cwd().resolve()
    if resolved == resolved.parent or resolved == Path.home().resolve():
        raise InputError(f"--output_dir {folder} is your home folder or the root of the disk; {_ANOTHER}.")
    if is_run(folder):
        return
    names = [entry.name for entry in folder.iterdir()]
    foreign = sorted(name for name in names if not name.startswith(".") and not CHECKPOINT.fullmatch(name))
    if foreign and (resolved == here or resolved in here.parents):
        raise InputError(
            f"--output_dir {folder} is the working folder or one above it, and holds {foreign[0]}; give a folder of "
            "its own."
        )


def _refuse_earlier(folder: Path, overwrite: bool) -> None:
    if overwrite:
        return
    if (folder / RESULTS_FILE).exists():
        replace = "" if _of_others(folder) else ", or --overwrite_output_dir to replace it"
        raise InputError(f"{folder} holds a finished run; {_ANOTHER}{replace}.")
    if aside := sorted(folder.glob(f"{_ASIDE}*")):
        raise InputError(
            f"{folder} holds {aside[-1].name}, an earlier run whose successor was killed before it was finished; move "
            "its files back, or give --overwrite_output_dir, which removes it when the new run is whole."
        )
    if old := checkpoints(folder):
        other = _ANOTHER if _of_others(folder) else "start over with --overwrite_output_dir"
        raise InputError(
            f"{folder} holds {old[-1].name} of an unfinished run; go on with "
            f"--resume_from_checkpoint true, or {other}."
        )


def is_run(folder: Path) -> bool:
    """Whether a folder is a run's: `results.json` says so, or what an unfinished one has logged."""
    if is_finished(folder):
        return True
    # Written when training begins, before any checkpoint and before the model.
    return (folder / METRICS_FILE).is_file() and not (folder / RESULTS_FILE).exists()


class RunFolder:
    """
    The folder of a run while the run writes to it.

    Args:
        path (`Path`): the folder.

    Attributes:
        model_is_whole (`bool`): whether the new model is saved; the run says so.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.model_is_whole = False
        self._aside: Path | None = None
        self._keeps_checkpoints = False

    def set_aside(self, *, checkpoints: bool = True) -> None:
        """
        Move an earlier run into a hidden folder beside its files; files that are no run's stay.

        Args:
            checkpoints (`bool`, *optional*, defaults to `True`): `False`: only its model and scores, which a run
                that goes on from its checkpoints replaces.
        """
        entries = [entry for entry in self._entries() if checkpoints or not _is_of_training(entry)]
        if not entries or self._aside is not None:
            return
        self._keeps_checkpoints = not checkpoints
        self._aside = Path(tempfile.mkdtemp(prefix=f"{_ASIDE}{datetime.now(UTC):%Y%m%d-%H%M%S}-", dir=self.path))
        for entry in entries:
            entry.rename(self._aside / entry.name)

    def remove_earlier(self) -> None:
        """The new run is whole: what it replaces goes."""
        for folder in self.path.glob(f"{_ASIDE}*"):
            shutil.rmtree(folder, ignore_errors=True)
        self._aside = None

    def restore(self) -> None:
        """The new run has come to nothing: the earlier one is put back, or its place is said."""
        if self._aside is None:
            return
        whole = last_whole(self.path)
        if self.model_is_whole or (whole is not None and not self._keeps_checkpoints):
            kept = whole.name if whole is not None else "the model"
            say(f"The earlier run is kept in {self._aside} until the new one, of which {kept} is whole, is finished.")
            return
        try:
            for entry in self._entries():
                if self._keeps_checkpoints and _is_of_training(entry):
                    continue
                shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
            for entry in list(self._aside.iterdir()):
                entry.rename(self.path / entry.name)
            self._aside.rmdir()
            say(f"The earlier run in {self.path} is as it was.")
        except OSError as error:
            say(f"The earlier run is in {self._aside}; it could not be put back ({error.strerror}).")

    def _entries(self) -> list[Path]:
        """What runs write; `base/` is one's if it holds a model."""
        return [
            entry
            for entry in sorted(self.path.iterdir())
            if entry.name in RECORDS
            or CHECKPOINT.fullmatch(entry.name)
            or (entry.is_file() and _MODEL_FILE.fullmatch(entry.name))
            or (entry.name == "base" and (entry / "config.json").is_file())
        ]


def _is_of_training(entry: Path) -> bool:
    """What a run goes on from and adds to, and does not replace at its end."""
    return entry.name == METRICS_FILE or CHECKPOINT.fullmatch(entry.name) is not None


@contextmanager
def run_folder(folder: Path, *, overwrite: bool, continuing: bool) -> Iterator[RunFolder]:
    """
    Hold a folder that [`check_output_dir`] has passed, while a run writes to it.

    With `overwrite` an earlier run is put aside, and removed at the end. When the run fails before it has anything
    whole, the earlier one is put back, and a folder that was made for the run and is empty is removed.

    Args:
        folder (`Path`): the folder; it is made.
        overwrite (`bool`): whether to put an earlier run aside.
        continuing (`bool`): whether the run goes on from a checkpoint in the folder, which then stays.

    Raises:
        InputError: if another process holds the folder, or has left a run there in the meantime.
    """
    with no_empty_folder(folder), folder_lock(folder, f"wait for it, or {_ANOTHER}"):
        if not continuing:
            _refuse_earlier(folder, overwrite)
        run = RunFolder(folder)
        try:
            if overwrite and not continuing:
                run.set_aside()
            yield run
        except BaseException:
            run.restore()
            raise
        if overwrite or continuing:
            run.remove_earlier()


@contextmanager
def no_empty_folder(folder: Path) -> Iterator[None]:
    """Remove a folder again that did not exist before and is empty when what is inside fails, and those above it."""
    made = [place for place in (folder, *folder.absolute().parents) if not place.exists()]
    try:
        yield
    except BaseException:
        for place in made:
            with suppress(OSError):
                place.rmdir()
        raise


def source_size_bytes(name_or_path: str) -> int | None:
    """Bytes on disk of the weights of a model name; `None` for the hub."""
    from sinkd_llm.models import resolve_model_source

    source = resolve_model_source(name_or_path)
    return weights_size_bytes(Path(source.path) / (source.gguf_file or ""))


def weights_size_bytes(path: str | Path) -> int | None:
    """Bytes of the weight files of a model folder or GGUF file, checkpoints left out; `None` if elsewhere."""
    path = Path(path)
    if path.is_file():
        return path.stat().st_size
    if not path.is_dir():
        return None
    return bytes_under(path, "*.safetensors", _is_of_the_model) or None


def _is_of_the_model(file: Path) -> bool:
    return not any(CHECKPOINT.fullmatch(part) or part.startswith(_ASIDE) for part in file.parts)
