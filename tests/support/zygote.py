"""Runs the command line in children of one warm process, and kills them where a test says.

A fresh Python needs ten seconds to import everything; a fork of one that has needs none, and dies as finally under
SIGKILL. Reads one JSON request a line from stdin and answers with one a line on stdout:

    {"argv": [...], "log": "file", "err": "file" or null, "cwd": "folder" or null,
     "module": "name" or null,   its `main(*argv)` is called instead of the command line
     "encoding": "ascii" or null,   of the streams, as $PYTHONIOENCODING sets it
     "die": {"at": PLACE, "step": 3, "rank": 1} or null, "after": seconds or null,
     "env": [{...}, ...],   one child for each environment; with `err`, stderr goes there and both files begin empty
     "together": true or null}   a child that fails ends the others, as under a launcher
    {"codes": [...], "seconds": ...}   each child's exit code, minus the signal that killed it
"""

import gc
import io
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

PLACES = (
    "training_step",
    "weights",
    "optimizer.pt",
    "scheduler.pt",
    "rng_state.pth",
    "trainer_state.json",
    "rotation",
)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def halve(path: str) -> None:
    """What a writer leaves that dies in the middle."""
    content = Path(path).read_bytes()
    Path(path).write_bytes(content[: len(content) // 2])


def arm(at: str, step: int, signal_number: int = signal.SIGKILL) -> None:
    """From now on this process dies at the step, at that place."""
    import torch
    import transformers.trainer as trainer_module
    from transformers import TrainerState

    from sinkd_llm.training.trainer import SinKDTrainer

    def at_step(trainer: Any) -> bool:
        return bool(trainer.state.global_step == step)

    if at == "training_step":
        train = SinKDTrainer.training_step

        def training_step(self: Any, *args: Any, **kwargs: Any) -> Any:
            if at_step(self):
                os.kill(os.getpid(), signal_number)
            return train(self, *args, **kwargs)

        SinKDTrainer.training_step = training_step
    elif at == "weights":
        save = SinKDTrainer._save

        def _save(self: Any, output_dir: str | None = None, state_dict: Any = None) -> None:
            save(self, output_dir, state_dict)
            if at_step(self):
                halve(next(str(file) for file in Path(str(output_dir)).glob("*.safetensors")))
                die()

        SinKDTrainer._save = _save
    elif at == "trainer_state.json":
        save_state = TrainerState.save_to_json

        def save_to_json(self: Any, path: str) -> None:
            save_state(self, path)
            if self.global_step == step:
                halve(path)
                die()

        TrainerState.save_to_json = save_to_json
    elif at == "rotation":
        rotate: Callable[..., None] = trainer_module.rotate_checkpoints

        def rotate_checkpoints(output_dir: str, *args: Any, **kwargs: Any) -> None:
            if (Path(output_dir) / f"checkpoint-{step}").exists():
                die()
            rotate(output_dir, *args, **kwargs)

        trainer_module.rotate_checkpoints = rotate_checkpoints
    else:
        torch_save = torch.save

        def save_file(content: Any, path: Any, *args: Any, **kwargs: Any) -> None:
            if str(path).endswith(f"checkpoint-{step}/{at}"):
                buffer = io.BytesIO()
                torch_save(content, buffer)
                Path(path).write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])
                die()
            torch_save(content, path, *args, **kwargs)

        torch.save = save_file


def child(request: dict[str, Any], environment: dict[str, str]) -> None:
    from sinkd_llm.cli import main

    apart = request.get("err")
    mode = os.O_WRONLY | os.O_CREAT | (os.O_TRUNC if apart else os.O_APPEND)
    log = os.open(request["log"], mode)
    os.dup2(log, 1)
    os.dup2(os.open(apart, mode) if apart else log, 2)
    os.environ.update(environment)
    os.chdir(request.get("cwd") or os.getcwd())
    if request.get("encoding"):
        sys.stdout.reconfigure(encoding=request["encoding"])  # type: ignore[union-attr]
        sys.stderr.reconfigure(encoding=request["encoding"], errors="backslashreplace")  # type: ignore[union-attr]
    deadly = request.get("die")
    if deadly and deadly.get("rank", 0) == int(environment.get("RANK", 0)):
        arm(deadly["at"], deadly["step"], deadly.get("signal", signal.SIGKILL))
    code = 1
    try:
        if request.get("module"):
            code = import_module(request["module"]).main(*request["argv"])
        else:
            code = main(request["argv"])
    except SystemExit as end:  # of argparse, after the help
        code = int(end.code or 0)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def serve() -> None:
    gc.disable()
    import sinkd_llm.cli.distill
    import sinkd_llm.cli.parsing
    import sinkd_llm.evaluation
    import sinkd_llm.runs.training
    import sinkd_llm.training.trainer  # noqa: F401

    # All of this lives as long as the process: neither it nor a child is to walk it at every collection of garbage.
    gc.freeze()
    gc.enable()
    for line in sys.stdin:
        request = json.loads(line)
        started = time.monotonic()
        pids = []
        for environment in request.get("env") or [{}]:
            pid = os.fork()
            if pid == 0:
                child(request, environment)
            pids.append(pid)
        if request.get("after") is not None:
            time.sleep(request["after"])
            os.kill(pids[0], signal.SIGKILL)
        codes: dict[int, int] = {}
        while len(codes) < len(pids):
            if time.monotonic() - started > request.get("limit", 240):
                for pid in set(pids) - set(codes):
                    os.kill(pid, signal.SIGKILL)
            for pid in set(pids) - set(codes):
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    codes[pid] = os.waitstatus_to_exitcode(status)
                    # With `first_end_only`, a stopped process is no concern: only its partners' end counts.
                    if request.get("first_end_only") or (request.get("together") and codes[pid] != 0):
                        for other in set(pids) - set(codes):
                            os.kill(other, signal.SIGKILL)
            time.sleep(0.005)
        answer = {"codes": [codes[pid] for pid in pids], "seconds": time.monotonic() - started}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    serve()
