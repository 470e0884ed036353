"""The folder of a run: may it be used, and what is in it."""

import shutil
from pathlib import Path

from sinkd_llm.checkpoints import CHECKPOINT, checkpoints
from sinkd_llm.errors import InputError
from sinkd_llm.report import METRICS_FILE, REPORT_FILE, RESULTS_FILE


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
        if not any(CHECKPOINT.fullmatch(part) for part in file.relative_to(path).parts)
    ]
    return sum(file.stat().st_size for file in files) or None
