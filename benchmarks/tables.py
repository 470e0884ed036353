"""Writes every table and chart from the results, and README's block of them: `python benchmarks/tables.py`."""

import importlib
from pathlib import Path

import common
from common import Results, markdown

README = Path(__file__).resolve().parents[1] / "README.md"
BEGIN, END = "<!-- made by benchmarks/tables.py -->", "<!-- end of what benchmarks/tables.py made -->"
# Results whose script has a `report(results)`; on a GPU they have names of their own.
NAMES = ("loss", "step", "solver", "growth", "limit", "evaluation")
ON_GPU = ("loss_gpu", "solver_gpu", "limit_gpu")

SECTION = """
## How fast it is

One thread of a CPU, from hidden states to the gradient of the student's (lower
is better; *published* is the form that the method's authors give):

![CPU seconds of the loss for vocabularies from 2 to 262,144 ids](benchmarks/results/loss.svg)

A whole training step, ten layers with LoRA learning SST-2 from their teacher,
in batches of 16 as rows come (*random*) and of rows of equal length
(*grouped*), the same tokens and batches for all. sinkd-llm groups them unless
told otherwise; TRL's trainers take rows as they come:

{table}

Peak memory counts the weights. All tables, with hardware and versions:
[benchmarks/README.md](benchmarks/README.md).
"""


def reported(name: str) -> None:
    """Table and chart of one file of results, if it is there."""
    results = Results(name)
    if results.rows:
        importlib.import_module(f"bench_{name.removesuffix(common.GPU)}").report(results)


def section() -> str:
    """README's block: chart and table, or nothing while one of them is missing."""
    loss, step = Results("loss"), Results("step")
    if not (loss.rows and step.rows):
        return "\n"
    from bench_step import table

    return SECTION.format(table=markdown(*table(step, targets=False))) + "\n"


def with_section(readme: str) -> str:
    """The text of README with the block as the results have it."""
    before, rest = readme.split(BEGIN)
    return f"{before}{BEGIN}\n{section().strip()}\n{END}{rest.split(END)[1]}".replace(f"{BEGIN}\n\n", f"{BEGIN}\n")


def main() -> None:
    for name in (*NAMES, *ON_GPU):
        reported(name)
    README.write_text(with_section(README.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
