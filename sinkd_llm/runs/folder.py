"""The folder of a run: may it be used, what is in it, and which checkpoint goes on."""

import json
import re
import shutil
from pathlib import Path

from sinkd_llm.errors import InputError
from sinkd_llm.report import METRICS_FILE, REPORT_FILE, RESULTS_FILE

_CHECKPOINT = re.compile(r"checkpoint-(\d+)")
_YES = ("true", "yes", "last", "1")
_NO = ("false", "no", "none", "0", "")


def checkpoints(output_dir: str | Path) -> list[Path]:
    """The `checkpoint-<step>` folders of a run, earliest step first."""
    found = [
        (int(match.group(1)), folder)
        for folder in Path(output_dir).glob("checkpoint-*")
        if folder.is_dir() and (match := _CHECKPOINT.fullmatch(folder.name))
    ]
    return [folder for _, folder in sorted(found)]


def prepare_output_dir(output_dir: str | Path, *, overwrite: bool, resuming: bool) -> Path:
    """
    Make the folder of a run, or refuse to lose what another run left there.

    With `overwrite` the records and checkpoints of the earlier run are deleted; other files stay.

    Raises:
        InputError: if the folder holds a finished run or checkpoints, and neither is set; or if the
            path is a file.
    """
    folder = Path(output_dir).expanduser()
    if folder.exists() and not folder.is_dir():
        raise InputError(f"output_dir {folder} is a file; give a folder.")
    if not resuming:
        old = checkpoints(folder)
        if (folder / RESULTS_FILE).exists() and not overwrite:
            raise InputError(
                f"{folder} holds a finished run; give another --output_dir, or --overwrite_output_dir to replace it."
            )
        if old and not overwrite:
            raise InputError(
                f"{folder} holds {old[-1].name} of an unfinished run; go on with "
                "--resume_from_checkpoint true, or start over with --overwrite_output_dir."
            )
        for checkpoint in old:
            shutil.rmtree(checkpoint, ignore_errors=True)
        for name in (RESULTS_FILE, METRICS_FILE, REPORT_FILE):
            (folder / name).unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def find_checkpoint(value: str | bool | None, output_dir: str | Path) -> Path | None:
    """
    The checkpoint that `resume_from_checkpoint` means: a folder, or `true` for the last one of the run.

    Raises:
        InputError: if there is none, or it is half written; names the last whole one, if any.
    """
    text = str(value).strip() if value is not None else ""
    if text.lower() in _NO:
        return None
    if text.lower() not in _YES:
        checkpoint = Path(text).expanduser()
        found = checkpoints(checkpoint) if checkpoint.is_dir() else []
        if found and not (checkpoint / "trainer_state.json").exists():
            raise InputError(f"{checkpoint} is a run folder; give one of its checkpoints: {found[-1]}.")
        problem = checkpoint_problem(checkpoint)
    else:
        found = checkpoints(output_dir)
        if not found:
            raise InputError(
                f"there is no checkpoint in {output_dir} to resume from; leave out "
                "--resume_from_checkpoint to start at the beginning, or give the folder of a checkpoint."
            )
        checkpoint = found[-1]
        problem = checkpoint_problem(checkpoint)
    if problem is None:
        return checkpoint
    whole = [c for c in checkpoints(checkpoint.parent) if checkpoint_problem(c) is None]
    advice = f"resume from {whole[-1]}, the last whole one" if whole else "start at the beginning"
    raise InputError(f"cannot resume from {checkpoint}: {problem}; {advice}.")


def checkpoint_problem(checkpoint: Path) -> str | None:
    """Why training cannot go on from a checkpoint folder, or `None` if it can."""
    if not checkpoint.is_dir():
        return "it does not exist"
    state = checkpoint / "trainer_state.json"
    if not state.is_file():  # Transformers writes it last
        return f"it is half written ({state.name} is missing)"
    try:
        json.loads(state.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return f"{state.name} is damaged"
    if any(checkpoint.glob("global_step*")) or any(checkpoint.glob("*_fsdp*")):
        return None  # DeepSpeed and FSDP keep their own layout and check it themselves
    weights = sorted(checkpoint.glob("*.safetensors"))
    if not weights:
        return "it is half written (it holds no *.safetensors file)"
    for file in weights:
        if not _is_whole_safetensors(file):
            return f"{file.name} is damaged or half written"
    import zipfile

    for name in ("optimizer.pt", "scheduler.pt"):
        file = checkpoint / name
        if not file.is_file():
            return f"{name} is missing (half written, or saved with save_only_model)"
        if not zipfile.is_zipfile(file):
            return f"{name} is damaged or half written"
    return None


def _is_whole_safetensors(file: Path) -> bool:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt"):  # reads the header and checks the file's length
            return True
    except (SafetensorError, OSError):
        return False


def weights_size_bytes(path: str | Path) -> int | None:
    """Bytes of the weight files of a model folder or GGUF file, checkpoints left out; `None` if elsewhere."""
    path = Path(path)
    if path.is_file():
        return path.stat().st_size
    if not path.is_dir():
        return None
    files = [
        file
        for file in path.rglob("*.safetensors")
        if not any(_CHECKPOINT.fullmatch(part) for part in file.relative_to(path).parts)
    ]
    return sum(file.stat().st_size for file in files) or None
