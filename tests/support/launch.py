"""Processes that tests start: a warm process whose children run commands, alone or as the ranks of a launch."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
# A folder whose tests start processes, run whole commands, or need real weights: its name is the mark of its tests.
MARKED_FOLDERS = ("distributed", "end_to_end", "real_model", "reliability", "served")
# Files elsewhere whose tests take as long, for the same reasons.
MARKED_FILES = {
    "cli/test_cache.py": "end_to_end",
    "cli/test_evaluate.py": "end_to_end",
    "cli/test_main.py": "end_to_end",
    "cli/test_memory_table.py": "end_to_end",
    "exporting/test_onnx.py": "end_to_end",  # torch's exporter takes seconds for the smallest model
    "memory/test_step.py": "end_to_end",  # a real step of every kind beside its estimate
    "models/test_kind_loading.py": "end_to_end",  # every kind saved, loaded and scored
    "models/test_probes.py": "end_to_end",  # models of every kind, at the width of a real one
    "models/test_saving.py": "end_to_end",  # students saved and loaded again, some in a process of their own
    "properties/test_commands.py": "end_to_end",
    "properties/test_task_files.py": "reliability",  # templates without end, each in a process of its own
    "report/test_in_a_browser.py": "end_to_end",  # a browser draws every page
    "serving/test_running.py": "reliability",  # a process of its own, and signals
    "serving/test_under_load.py": "reliability",
    "tasks/test_bounded.py": "reliability",
    "tasks/test_builtin.py": "end_to_end",  # every row of the benchmarks
    "tasks/test_lm_eval.py": "end_to_end",  # the import alone takes ten seconds
    "teachers/test_cache_writer.py": "reliability",  # processes that are killed again and again
    "training/test_cached_teacher.py": "end_to_end",  # whole trajectories
    "training/test_kinds.py": "end_to_end",  # a training of every kind
    "training/test_settings_train.py": "end_to_end",  # a training for every setting
}


def ranks(count: int = 2) -> list[dict[str, str]]:
    """What a launcher puts into the environment of each of its processes, here all on CPUs."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {
        "CUDA_VISIBLE_DEVICES": "",
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    return [{**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]


class Ended:
    """A process that has ended at once."""

    def __init__(self, code: int) -> None:
        self.code = code

    def poll(self) -> int:
        return self.code

    def terminate(self) -> None:
        raise AssertionError("it has ended")


@contextmanager
def warm_process() -> Iterator[Callable[..., dict[str, Any]]]:
    """Sends requests to tests/support/zygote.py, and waits for the answer to each."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY), "PYTHONWARNINGS": "ignore"}
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.support.zygote"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment,
        cwd=REPOSITORY,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    requests, answers = process.stdin, process.stdout

    def ask(argv: list[str], log: Path, **request: Any) -> dict[str, Any]:
        requests.write(json.dumps({"argv": argv, "log": str(log), **request}) + "\n")
        requests.flush()
        return dict(json.loads(answers.readline()))

    yield ask
    requests.close()
    process.wait(timeout=30)


def run_ranks(
    zygote: Callable[..., dict[str, Any]], module: str, *arguments: str, log: Path, limit: float = 500
) -> None:
    """Two ranks over gloo run a module's `main`; one that fails ends the other, and what they said is in `log`."""
    name = f"tests.distributed.{module}"
    answer = zygote(list(arguments), log, module=name, env=ranks(), together=True, limit=limit)
    assert answer["codes"] == [0, 0], log.read_text()[-9000:]


def without_adapter(argv: list[str]) -> list[str]:
    """The same flags for a student whose own weights are trained."""
    kept = [word for word in argv if word != "--use_peft"]
    for name in ("--lora_r", "--lora_dropout"):
        place = kept.index(name)
        del kept[place : place + 2]
    return kept
