"""How long a user waits before anything happens: import, help, a mistyped flag, the rows of SST-2, a GGUF model."""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile

from common import write

ROWS = "from sinkd_llm.tasks import load_task; load_task('sst2').load('train', {data!r})"
GGUF = (
    "from sinkd_llm.models.names import resolve_model_source; "
    "from sinkd_llm.models.gguf import converted_model, converted_tokenizer; "
    "source = resolve_model_source({name!r}); converted_tokenizer(source); converted_model(source, 'float32')"
)
REPEATS = 5


def seconds_of(command: list[str], cache: str) -> float:
    """CPU seconds of a command in a fresh process with its children: the machine may be busy with other things."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, check=False, capture_output=True, env={**os.environ, "SINKD_CACHE_DIR": cache})
    assert done.returncode == (2 if "--alhpa" in command else 0), done.stderr.decode()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data_dir", default=os.environ.get("SINKD_DATA_DIR"), help="GLUE's files; default: no rows")
    parser.add_argument("--model", help="a bundled GGUF model to convert, such as smollm2-135m")
    args = parser.parse_args()
    python = [sys.executable]
    rows, cases = (
        [],
        {
            "python -c pass": ([*python, "-c", "pass"], ""),
            "import sinkd_llm": ([*python, "-c", "import sinkd_llm"], "0.3"),
            "sinkd --help": ([*python, "-m", "sinkd_llm", "--help"], "1.0"),
            "sinkd distill --help": ([*python, "-m", "sinkd_llm", "distill", "--help"], "1.0"),
            "sinkd distill --alhpa 1": ([*python, "-m", "sinkd_llm", "distill", "--alhpa", "1"], "1.0"),
            "sinkd evaluate --help": ([*python, "-m", "sinkd_llm", "evaluate", "--help"], "1.0"),
        },
    )
    with tempfile.TemporaryDirectory() as cache:
        for name, (command, target) in cases.items():
            seconds = statistics.median(seconds_of(command, cache) for _ in range(REPEATS))
            rows.append([name, f"{seconds:.2f}", target])
        if args.data_dir:
            load = [*python, "-c", ROWS.format(data=args.data_dir)]
            for name in ("rows of SST-2, first time", "rows of SST-2, again"):
                rows.append([name, f"{seconds_of(load, cache):.2f}", ""])
            rows.append(
                ["  of this, import of datasets", f"{seconds_of([*python, '-c', 'import datasets'], cache):.2f}", ""]
            )
        if args.model:
            convert = [*python, "-c", GGUF.format(name=args.model)]
            for name in (f"{args.model} from GGUF, first time", f"{args.model}, again"):
                rows.append([name, f"{seconds_of(convert, cache):.2f}", ""])
    notes = f"A fresh process for each, and a cache folder that is empty at first; flags: median of {REPEATS}."
    write("startup", "CPU seconds until something happens", ["what", "CPU s", "target"], rows, notes)


if __name__ == "__main__":
    main()
