"""What every benchmark says about itself: the machine, the versions, and a table in Markdown."""

import platform
import statistics
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


def machine() -> str:
    """Processor, cores in use and versions, in one line."""
    import torch

    name = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), name)
    if torch.cuda.is_available():
        name = torch.cuda.get_device_name()
    versions = ", ".join(f"{p} {version(p)}" for p in ("torch", "transformers", "peft", "sinkd-llm"))
    return f"{name}, {torch.get_num_threads()} threads, Python {platform.python_version()}, {versions}"


def interleaved_medians(cases: dict[str, Callable[[], float]], repeats: int) -> dict[str, tuple[float, float]]:
    """Median and median absolute deviation of each case's seconds.

    The cases take turns, in alternating order, so that a slow minute of the machine hits all of them.
    """
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for case in cases.values():
        case()  # warm-up
    for turn in range(repeats):
        for name in list(cases)[:: 1 if turn % 2 == 0 else -1]:
            seconds[name].append(cases[name]())
    out = {}
    for name, values in seconds.items():
        middle = statistics.median(values)
        out[name] = (middle, statistics.median(abs(v - middle) for v in values))
    return out


def write(name: str, title: str, header: list[str], rows: list[list[str]], notes: str) -> None:
    """Prints the table and writes it to `benchmarks/results/<name>.md`."""
    lines = [f"# {title}", "", machine(), "", f"Command: `python benchmarks/{Path(sys.argv[0]).name}`", ""]
    lines += ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    lines += ["", notes.strip(), ""]
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.md").write_text("\n".join(lines))
    print("\n".join(lines))


def median_seconds_of_command(command: list[str], repeats: int) -> float:
    """Median wall-clock seconds of a command in a fresh process."""
    import time

    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)
