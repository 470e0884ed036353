"""What the benchmarks share: timing in turns, peak memory of a fresh process, and results that are kept case by case.

A script appends every finished case to `results/<name>.csv` and skips those that stand there, so that it can be
stopped and goes on. `results/hardware.json` says what a `hardware` of these files is.
"""

import argparse
import csv
import hashlib
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

from sinkd_llm.environment import processor

RESULTS = Path(__file__).parent / "results"
HARDWARE = "hardware.json"
PACKAGES = ("torch", "transformers", "peft", "trl", "lm_eval", "pot", "geomloss", "sinkd-llm")
GPU = "_gpu"  # the end of a name of results
COLUMNS = ("case", "contender", "seconds", "deviation", "repeats", "memory_mb", "hardware")
# glibc keeps freed blocks below a growing size to itself; with this it gives every large one back at once.
EXACT_ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536"}


def on_gpu() -> bool:
    """Whether benchmarks run on a CUDA device."""
    import torch

    return torch.cuda.is_available()


class Timing(NamedTuple):
    """Median and median absolute deviation in seconds, and of how many repeats."""

    seconds: float
    deviation: float
    repeats: int


def hardware() -> dict[str, str]:
    """Processor, threads in use and versions."""
    import torch

    facts = {"processor": processor(), "threads": str(torch.get_num_threads()), "python": platform.python_version()}
    if torch.cuda.is_available():
        facts["gpu"] = f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}"
    for package in PACKAGES:
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            facts[package] = "not installed"
    return facts


def machine(facts: dict[str, str] | None = None) -> str:
    """Processor, threads in use and versions, in one line."""
    facts = dict(facts or hardware())
    line = f"{facts.pop('processor')}, {facts.pop('threads')} threads, Python {facts.pop('python')}"
    return ", ".join([line, *(f"{name} {number}" for name, number in facts.items() if number != "not installed")])


def remember_hardware(file: Path) -> str:
    """The name that stands for this machine in the results, which `file` explains."""
    facts = hardware()
    name = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:8]
    known = json.loads(file.read_text()) if file.exists() else {}
    if known.get(name) != facts:
        file.write_text(json.dumps({**known, name: facts}, indent=1) + "\n")
    return name


class Options(argparse.Namespace):
    """What [`options`] gives."""

    quick: bool
    again: bool
    only: str
    report: bool
    memory: list[str] | None

    def wants(self, case: str) -> bool:
        """Whether a case is to be measured."""
        return not self.report and re.search(self.only, case) is not None


def options(description: str | None, memory: Callable[[str, str], None] | None = None) -> Options:
    """What every script takes: `--quick`, `--again` and `--only`.

    `--memory CASE CONTENDER` is what a script calls itself with to measure in a fresh process, see [`fresh_peak`]:
    then `memory` does so, and the process ends.
    """
    parser = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one small case, written to a temporary folder")
    parser.add_argument("--again", action="store_true", help="measure also what has been measured")
    parser.add_argument("--only", default="", metavar="REGEX", help="only the cases in whose name REGEX is found")
    parser.add_argument("--report", action="store_true", help="measure nothing; write table and chart from the file")
    parser.add_argument("--memory", nargs=2, metavar=("CASE", "CONTENDER"), help=argparse.SUPPRESS)
    args = parser.parse_args(namespace=Options())
    if args.memory:
        import torch

        if memory is None:
            parser.error("this benchmark measures no memory")
        torch.set_num_threads(1)
        memory(*args.memory)
        parser.exit()
    return args


class Results:
    """The rows of `results/<name>.csv`, one for each case and contender; on a GPU of `results/<name>_gpu.csv`.

    Args:
        name (`str`): of the file.
        extra (sequence of `str`): columns of this benchmark beside [`COLUMNS`].
        quick (`bool`): keep them in a temporary folder.
        again (`bool`): what was there before this run counts as missing.
    """

    def __init__(self, name: str, extra: Sequence[str] = (), *, quick: bool = False, again: bool = False) -> None:
        self.on_gpu = name.endswith(GPU) or on_gpu()
        self.name = f"{name.removesuffix(GPU)}{GPU if self.on_gpu else ''}"
        folder = Path(tempfile.mkdtemp(prefix="benchmark-")) if quick else RESULTS
        self.path, self.columns = folder / f"{self.name}.csv", (*COLUMNS, *extra)
        self.rows: list[dict[str, str]] = []
        self.old: set[tuple[str, str]] = set()
        if self.path.exists():
            with self.path.open(newline="", encoding="utf-8") as file:
                self.rows = list(csv.DictReader(file))
        if again:
            self.old = {(row["case"], row["contender"]) for row in self.rows}

    def get(self, case: str, contender: str) -> dict[str, str] | None:
        """The row, or `None` if it was not measured."""
        return next((r for r in self.rows if (r["case"], r["contender"]) == (case, contender)), None)

    def missing(self, case: str, contenders: Sequence[str], column: str = "seconds") -> list[str]:
        """The contenders of a case that this run has to measure."""
        rows = {contender: self.get(case, contender) for contender in contenders}
        return [c for c, row in rows.items() if row is None or not row.get(column) or (case, c) in self.old]

    def add(self, case: str, contender: str, timing: Timing | None = None, **columns: object) -> None:
        """Writes a row, or more columns of one that is there; the file is whole at any time."""
        row = self.get(case, contender)
        if row is None:
            row = dict.fromkeys(self.columns, "")
            row |= {"case": case, "contender": contender}
            self.rows.append(row)
        self.path.parent.mkdir(exist_ok=True)
        row["hardware"] = remember_hardware(self.path.with_name(HARDWARE))
        if timing is not None:
            row["seconds"], row["deviation"] = f"{timing.seconds:.6g}", f"{timing.deviation:.3g}"
            row["repeats"] = str(timing.repeats)
            self.old.discard((case, contender))
        row |= {name: f"{value:.6g}" if isinstance(value, float) else str(value) for name, value in columns.items()}
        partial = self.path.with_suffix(".partial")
        with partial.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self.columns, lineterminator="\n", restval="")
            writer.writeheader()
            writer.writerows(self.rows)
        partial.replace(self.path)
        print(f"{self.name}: {case}, {contender}: " + ", ".join(f"{k} {v}" for k, v in row.items() if v), flush=True)

    def number(self, case: str, contender: str, column: str = "seconds") -> float | None:
        """A column of a row; `None` where it was not measured."""
        row = self.get(case, contender)
        return float(row[column]) if row and row.get(column) else None

    @property
    def unit(self) -> str:
        """What the seconds are, for an axis."""
        return "seconds on a GPU" if self.on_gpu else "CPU seconds, one thread"

    def machines(self) -> str:
        """What was measured on, one line a machine."""
        known = json.loads(self.path.with_name(HARDWARE).read_text())
        return "\n\n".join(machine(known[name]) for name in sorted({row["hardware"] for row in self.rows}))


def clock() -> float:
    """Seconds of the processor, which other jobs on the machine hardly change; on a GPU seconds of the wall."""
    if on_gpu():
        import torch

        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def timed(function: Callable[[], Any]) -> Callable[[], float]:
    """Calls `function` and returns its seconds."""

    def run() -> float:
        started = clock()
        function()
        return clock() - started

    return run


def interleaved_medians(
    cases: dict[str, Callable[[], float]], repeats: int, *, budget: float = float("inf"), warm_up: bool = True
) -> dict[str, Timing]:
    """Median and median absolute deviation of each case's seconds.

    The cases take turns, in alternating order, so that a slow minute of the machine hits all of them.

    Args:
        cases (`dict[str, Callable]`): name to a function that returns its seconds; see [`timed`].
        repeats (`int`): turns after the warm-up.
        budget (`float`): no turn begins after so many seconds of the wall; three are taken in any case, or two where
            these take more than four times as long, or `repeats` if that is fewer.
        warm_up (`bool`): whether each case is called once before.
    """
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    started = time.perf_counter()
    for case in cases.values() if warm_up else ():
        case()
    for turn in range(repeats):
        spent = time.perf_counter() - started
        if (turn >= 3 and spent > budget) or (turn >= 2 and spent > 4 * budget):
            break
        for name in list(cases)[:: 1 if turn % 2 == 0 else -1]:
            seconds[name].append(cases[name]())
    out = {}
    for name, values in seconds.items():
        middle = statistics.median(values)
        out[name] = Timing(middle, statistics.median(abs(v - middle) for v in values), len(values))
    return out


def resident(field: str) -> int:
    """Bytes of `VmRSS` or `VmHWM`, which Linux counts."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith(field))


def forget_peak() -> None:
    """`VmHWM` counts from here."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_of(function: Callable[[], Any]) -> int:
    """Bytes of memory that a call takes beyond what the process holds, or on a GPU, beyond what is allocated there."""
    if on_gpu():
        import torch

        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        return torch.cuda.max_memory_allocated() - before
    forget_peak()
    before = resident("VmRSS")
    function()
    return resident("VmHWM") - before


def fresh_peak(script: str, case: str, contender: str) -> float:
    """MB that the script's own `--memory CASE CONTENDER` prints in a fresh process with glibc's exact allocator."""
    command = [sys.executable, script, "--memory", case, contender]
    environment = {**os.environ, **EXACT_ALLOCATOR}
    output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment).stdout
    return float(output.splitlines()[-1]) / 1e6


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table, numbers to the right."""
    lines = ["| " + " | ".join(header) + " |", "|" + "|".join(["---"] + ["--:"] * (len(header) - 1)) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def write(name: str, title: str, header: list[str], rows: list[list[str]], notes: str, machines: str = "") -> None:
    """Prints the table and writes it to `benchmarks/results/<name>.md`.

    Args:
        machines (`str`): what was measured on, of [`Results.machines`]; by default, this machine.
    """
    lines = [
        f"# {title}",
        "",
        machines or machine(),
        "",
        f"Command: `python benchmarks/bench_{name.removesuffix(GPU)}.py`",
        "",
    ]
    lines += [markdown(header, rows), "", notes.strip(), ""]
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.md").write_text("\n".join(lines), encoding="utf-8")
    print("\n".join(lines))


def median_seconds_of_command(command: list[str], repeats: int) -> float:
    """Median wall-clock seconds of a command in a fresh process."""
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)
