"""How long a user waits before anything happens: the bare import and the help text."""

import sys

from common import median_seconds_of_command, write

CASES = {
    "python -c pass": ([sys.executable, "-c", "pass"], ""),
    "import sinkd_llm": ([sys.executable, "-c", "import sinkd_llm"], "0.3"),
    "sinkd --help": ([sys.executable, "-m", "sinkd_llm", "--help"], "1.0"),
}


def main() -> None:
    rows = [
        [name, f"{median_seconds_of_command(command, 7):.3f}", target] for name, (command, target) in CASES.items()
    ]
    write(
        "startup",
        "Seconds until something happens",
        ["command", "median s", "target s"],
        rows,
        "Median of 7 fresh processes.",
    )


if __name__ == "__main__":
    main()
