"""What `sinkd compare` found: its table, its sentences, and the files `results.csv`, `results.json` and its page."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sinkd_llm.files import write_whole
from sinkd_llm.report.results import LOSSES
from sinkd_llm.report.templates import render_page
from sinkd_llm.secrets import recordable, without_home
from sinkd_llm.units import NOT_KNOWN, format_bytes, format_duration

if TYPE_CHECKING:
    from rich.table import Table

    from sinkd_llm.report.drawing import Drawing

CSV_FILE, JSON_FILE, PAGE_FILE = "results.csv", "results.json", "comparison.html"
# Names of rows, and of what they are.
STUDENT, TEACHER = "student", "teacher"
MAJORITY, TFIDF, GOLD = "most frequent label", "TF-IDF + logistic regression", "gold labels only"
CONTROL = "identity control"
WITHOUT_TEACHER = (MAJORITY, TFIDF, GOLD)
LEVEL = 0.05


@dataclass(frozen=True)
class Contrast:
    """
    How much higher one row scores than another.

    Attributes:
        estimate (`float`): the mean difference.
        low, high (`float`, *optional*): its 95 % interval; `None` where nothing is known of its spread.
        p (`float`, *optional*): two-sided.
        p_holm (`float`, *optional*): after Holm's correction over the family.
        p_seeds (`float`, *optional*): of a paired t test over the seeds alone.
        seeds, examples (`int`): how many of them are behind it; 0 examples: the seeds alone.
    """

    estimate: float
    low: float | None = None
    high: float | None = None
    p: float | None = None
    p_holm: float | None = None
    p_seeds: float | None = None
    seeds: int = 0
    examples: int = 0

    @property
    def supported(self) -> bool:
        """Whether there is a difference: the corrected p value is below 0.05."""
        return self.p_holm is not None and self.p_holm < LEVEL

    @property
    def bound(self) -> float | None:
        """No larger difference is supported."""
        return None if self.low is None or self.high is None else max(abs(self.low), abs(self.high))


@dataclass
class ComparedRow:
    """
    A row of the table.

    Attributes:
        name (`str`): what is compared.
        kind (`str`): `STUDENT`, `TEACHER`, `CONTROL`, or one of `WITHOUT_TEACHER`.
        cell (`str`): the cell that stands for it, with the chosen settings.
        scores (`dict[int, float]`): on the rows for evaluation, by seed.
        mean (`float`): of these.
        sd (`float`, *optional*): of these; `None` for one seed, and for what no seed changes.
        held_out (`float`, *optional*): the mean on held-out training rows.
        seconds (`float`, *optional*): of training, the mean over seeds.
        memory_bytes (`int`, *optional*): the most of any run.
        chosen_from (`int`): among so many cells.
        against (`Contrast`, *optional*): with the baseline; `None` for the baseline itself.
    """

    name: str
    kind: str
    cell: str
    scores: dict[int, float]
    mean: float
    sd: float | None = None
    held_out: float | None = None
    seconds: float | None = None
    memory_bytes: int | None = None
    chosen_from: int = 1
    against: Contrast | None = None


@dataclass
class RunEntry:
    """
    One run: a cell with a seed.

    Attributes:
        cell, variant (`str`): of it.
        kind (`str`): as of [`ComparedRow`].
        seed (`int`): of it.
        settings (`dict[str, Any]`): that are not the recipe's.
        folder (`str`): its own.
        problem (`str`, *optional*): why it failed: the last lines that it printed.
        metrics (`dict[str, float]`): on the rows for evaluation.
        held_out (`dict[str, float]`): on held-out training rows.
        steps (`int`, *optional*), seconds (`float`, *optional*), memory_bytes (`int`, *optional*): of training.
    """

    cell: str
    variant: str
    kind: str
    seed: int
    settings: dict[str, Any]
    folder: str
    problem: str | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    held_out: dict[str, float] = field(default_factory=dict)
    steps: int | None = None
    seconds: float | None = None
    memory_bytes: int | None = None


@dataclass
class Comparison:
    """
    What `results.json` of a comparison holds.

    Attributes:
        command_line (`str`): how it was called.
        task, metric (`str`): what was scored, and how.
        baseline (`str`): the row that the others are compared with.
        seeds (`list[int]`): of all runs.
        examples, held_out_examples (`int`): rows for evaluation, and held-out training rows.
        rows (`list[ComparedRow]`): what is compared.
        runs (`list[RunEntry]`): all runs, also those of cells that were not chosen.
        best (`str`, *optional*): the student that is best on held-out rows, if there are any.
        over_baselines (`dict[str, dict[str, Contrast]]`): baseline without a teacher -> student -> how much higher the
            student scores.
        notes (`list[str]`): what could not be done, and why.
        finished (`str`), versions (`dict[str, str]`): when, with what.
    """

    command_line: str
    task: str
    metric: str
    baseline: str
    seeds: list[int]
    examples: int
    held_out_examples: int
    rows: list[ComparedRow]
    runs: list[RunEntry]
    best: str | None = None
    over_baselines: dict[str, dict[str, Contrast]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    finished: str = ""
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def failed(self) -> list[RunEntry]:
        """The runs without a result."""
        return [run for run in self.runs if run.problem is not None]

    def row(self, name: str) -> ComparedRow | None:
        """The row of this name, if it has a score."""
        return next((row for row in self.rows if row.name == name), None)


def sentences(found: Comparison) -> list[str]:
    """What was found, in words: what was chosen, which differences there are, and whether to distil at all."""
    said = [*_chosen(found), *_differences(found), *_verdict(found), *found.notes]
    if found.failed:
        cells = dict.fromkeys(run.cell for run in found.failed)
        said.append(
            f"{_count(len(found.failed), 'run')} of {len(found.runs)} failed, of {', '.join(cells)}; the same command "
            "tries them again."
        )
    if len(found.seeds) < 3:
        said.append(
            f"{_count(len(found.seeds), 'seed')} cannot tell how much a result changes with the seed; take 3 or more, "
            "better 5."
        )
    return said


def _chosen(found: Comparison) -> list[str]:
    rows = f"{found.held_out_examples:,} held-out training rows"
    said = [
        f"{row.name}: {row.cell.removeprefix(row.name).lstrip(', ')} is the best of {row.chosen_from} on {rows} "
        f"({found.metric} {score(row.held_out)} there)."
        for row in found.rows
        if row.chosen_from > 1
    ]
    if found.best is not None and sum(row.kind == STUDENT for row in found.rows) > 1:
        best = found.row(found.best)
        if best is not None:
            said.append(
                f"Of the students, {best.name} is the best on {rows} ({found.metric} {score(best.held_out)}); on the "
                f"rows for evaluation the student scores {score(best.mean)}."
            )
    return said


def _differences(found: Comparison) -> list[str]:
    said = []
    family = sum(row.against is not None for row in found.rows)
    for row in found.rows:
        one = row.against
        if one is None:
            continue
        if one.bound is None:
            said.append(f"{row.name} and {found.baseline}: so few seeds and rows say nothing of chance.")
        elif one.supported:
            better = (one.estimate > 0) != (found.metric in LOSSES)
            said.append(
                f"{row.name} is {'better' if better else 'worse'} than {found.baseline} by {score(abs(one.estimate))} "
                f"{interval_of(one)}, {p_of(one)} after Holm's correction over {_count(family, 'comparison')}."
            )
        else:
            said.append(
                f"{row.name} and {found.baseline}: no difference is supported ({interval_of(one)}, {p_of(one)}), and "
                f"none larger than {score(one.bound)}."
            )
    return said


def _verdict(found: Comparison) -> list[str]:
    """Whether something without a teacher does as well."""
    students = {row.name: row for row in found.rows if row.kind == STUDENT}
    sign = -1 if found.metric in LOSSES else 1
    said = []
    for name, contrasts in found.over_baselines.items():
        rival = found.row(name)
        if rival is None or not contrasts:
            continue
        top = max(students.values(), key=lambda row: sign * row.mean)
        if sign * rival.mean >= sign * top.mean:
            said.append(
                f"Do not distil here: {name}, which needs no teacher, scores {score(rival.mean)}, the best student "
                f"{score(top.mean)}."
            )
        elif not any(one.supported and sign * one.estimate > 0 for one in contrasts.values()):
            said.append(
                f"No student is better than {name} ({score(rival.mean)}) as far as these runs support it: the best "
                f"scores {score(top.mean)}. Distil only if more seeds or more rows for evaluation show a gain."
            )
    return said


def comparison_table(found: Comparison) -> "Table":
    """The table as `rich` prints it, in 80 columns."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    table.add_column("", overflow="fold")
    for name in (found.metric, f"to {found.baseline}"[:24], "p", "time", "memory"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in found.rows:
        cells = table_cells(found, row)
        table.add_row(cells[0], cells[1], "\n".join(filter(None, cells[2:4])), *cells[4:])
    return table


def table_cells(found: Comparison, row: ComparedRow) -> list[str]:
    """What the table says of a row: name, score, difference, its interval, p, time, memory."""
    change, interval, p = NOT_KNOWN, "", NOT_KNOWN
    if row.name == found.baseline:
        change, p = "baseline", ""
    elif row.against is not None:
        change, interval, p = f"{row.against.estimate:+.3f}", interval_of(row.against), _p(row.against.p_holm)
    seconds = NOT_KNOWN if row.seconds is None else format_duration(row.seconds)
    memory = NOT_KNOWN if row.memory_bytes is None else format_bytes(row.memory_bytes)
    return [row.cell, mean_of(row.mean, row.sd), change, interval, p, seconds, memory]


def write_comparison(folder: Path, found: Comparison, curves: "Sequence[Drawing]" = ()) -> None:
    """
    Write `results.csv` (a row a run), `results.json` and `comparison.html`.

    Args:
        folder (`Path`): of the comparison.
        found ([`Comparison`]): what was found.
        curves (`Sequence[Drawing]`, *optional*): drawings for the page.
    """
    write_whole(folder / CSV_FILE, _as_csv(found))
    content = recordable({**asdict(found), "sentences": sentences(found)})
    write_whole(folder / JSON_FILE, json.dumps(content, indent=2, ensure_ascii=False, default=str) + "\n")
    write_whole(folder / PAGE_FILE, render_comparison(found, curves))


def _as_csv(found: Comparison) -> str:
    settings = list(dict.fromkeys(name for run in found.runs for name in run.settings))
    metrics = list(dict.fromkeys(name for run in found.runs for name in run.metrics))
    held_out = list(dict.fromkeys(name for run in found.runs for name in run.held_out))
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    known = ["cell", "variant", "kind", "seed"]
    cost = ["steps", "seconds", "memory_bytes"]
    # A setting may be called as a score is.
    writer.writerow([*known, *settings, *metrics, *(f"held_out_{name}" for name in held_out), *cost, "problem"])
    for run in found.runs:
        writer.writerow(
            [
                *(getattr(run, name) for name in known),
                *(_cell(run.settings, name) for name in settings),
                *(run.metrics.get(name, "") for name in metrics),
                *(run.held_out.get(name, "") for name in held_out),
                *("" if getattr(run, name) is None else getattr(run, name) for name in cost),
                without_home(run.problem or ""),
            ]
        )
    return stream.getvalue()


def _cell(settings: Mapping[str, Any], name: str) -> str:
    if name not in settings:
        return ""
    value = settings[name]
    return value if isinstance(value, str) else json.dumps(value, default=str)


def render_comparison(found: Comparison, curves: "Sequence[Drawing]" = ()) -> str:
    """The page as HTML text. No script, no outside file."""
    return render_page(
        "comparison.html.jinja",
        found=found,
        header=["", found.metric, f"difference to {found.baseline}", "95 % interval", "p (Holm)", "time", "memory"],
        rows=[table_cells(found, row) for row in found.rows],
        bold=[i for i, row in enumerate(found.rows) if row.name == found.baseline],
        runs=[_run_cells(found, run) for run in found.runs],
        sentences=sentences(found),
        curves=curves,
        duration=format_duration(sum(run.seconds or 0 for run in found.runs)),
    )


def _run_cells(found: Comparison, run: RunEntry) -> list[str]:
    cells = [run.cell, str(run.seed)]
    if run.problem is not None:
        return [*cells, "failed", *[NOT_KNOWN] * 3]
    scores = [score(run.metrics.get(found.metric)), score(run.held_out.get(found.metric))]
    return [*cells, *scores, str(run.steps), f"{run.seconds or 0:.1f}"]


def score(value: float | None) -> str:
    """`0.8312`: a digit more than scores have alone, as differences are small."""
    return NOT_KNOWN if value is None else f"{value:.4f}"


def mean_of(mean: float, sd: float | None) -> str:
    """`0.826 ± 0.003`."""
    return f"{mean:.3f}" + (f" ± {sd:.3f}" if sd is not None else "")


def interval_of(one: Contrast) -> str:
    """`[-0.032, -0.018]`, or nothing where it is not known."""
    return "" if one.low is None or one.high is None else f"[{one.low:+.3f}, {one.high:+.3f}]"


def _p(value: float | None) -> str:
    return NOT_KNOWN if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"


def p_of(one: Contrast) -> str:
    """`p = 0.031`, `p < 0.001`."""
    text = _p(one.p_holm)
    return f"p {text}" if text.startswith("<") else f"p = {text}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
