"""From finished runs to what is found: settings chosen on held-out rows, differences on the rows for evaluation."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sinkd_llm.errors import InputError
from sinkd_llm.metrics.significance import Difference, mean_and_sd
from sinkd_llm.report.comparison import (
    CONTROL,
    STUDENT,
    TEACHER,
    WITHOUT_TEACHER,
    ComparedRow,
    Comparison,
    Contrast,
    RunEntry,
)
from sinkd_llm.report.curves import draw_plot
from sinkd_llm.report.drawing import Drawing
from sinkd_llm.report.predictions import EVALUATION, HELD_OUT, Predictions, read_predictions
from sinkd_llm.report.predictions import TEACHER as OF_TEACHER
from sinkd_llm.report.results import METRICS_FILE, RunRecord, read_records
from sinkd_llm.report.terms import Plot
from sinkd_llm.runs.comparing.baselines import answers_without_model, is_identity, why_without_model
from sinkd_llm.runs.comparing.grid import Grid
from sinkd_llm.runs.comparing.runs import Run
from sinkd_llm.runs.comparing.scores import Compared, EvaluationScores, HeldOutScores, adjusted, choose, scores_of
from sinkd_llm.runs.data import RunData

if TYPE_CHECKING:
    from collections.abc import Callable

# Curves that can be told apart.
_MOST_CURVES = 7
# Scores that the table shows as the same number.
_ALIKE = 5e-4


def entry_of(run: Run, problem: str | None) -> RunEntry:
    """What is known of a run, finished or failed."""
    cell = run.cell
    settings = dict(cell.settings)
    entry = RunEntry(cell.name, cell.variant, cell.kind, run.seed, settings, str(run.folder), problem)
    if problem is not None:
        return entry
    answers, record = read_predictions(run.folder), RunRecord.read(run.folder)
    entry.metrics = dict(answers[EVALUATION].metrics)
    entry.held_out = dict(answers[HELD_OUT].metrics) if HELD_OUT in answers else {}
    entry.steps, entry.seconds = int(record.training["steps"]), float(record.training["seconds"])
    entry.memory_bytes = record.peak_memory_bytes or None
    return entry


def compared(
    grid: Grid,
    metric: str,
    entries: Sequence[RunEntry],
    data: RunData,
    rows_of: "Callable[[str, int], RunData] | None" = None,
) -> Comparison:
    """
    Choose, and compare.

    Args:
        grid ([`Grid`]): what was asked.
        metric (`str`): what is compared.
        entries (`Sequence[RunEntry]`): of all runs.
        data ([`RunData`]): the rows of the baseline.
        rows_of (`Callable`, *optional*): the rows that a cell, by its name, is trained on with a seed, for the
            baselines that need no run; `None`: no baselines. Teachers that score differently are rows even so.

    Raises:
        InputError: if no run of the baseline has a result, or cells were scored on different rows.
    """
    done = [entry for entry in entries if entry.problem is None]
    answers = {(entry.cell, entry.seed): read_predictions(Path(entry.folder)) for entry in done}
    notes = _drop_other_controls(done)
    held_out = _held_out(done, answers, metric)
    chosen: dict[str, str] = {}
    for variant in dict.fromkeys(entry.variant for entry in done):
        cells = list(dict.fromkeys(entry.cell for entry in done if entry.variant == variant))
        if len(cells) > 1:
            known = {cell: held_out[cell] for cell in cells if cell in held_out}
            whole = {cell: scores for cell, scores in known.items() if len(scores.by_seed) == len(grid.seeds)}
            chosen[variant] = choose(whole or known, metric)
        else:
            chosen[variant] = cells[0]
    if grid.baseline not in chosen:
        failed = next(entry for entry in entries if entry.variant == grid.baseline)
        raise InputError(
            f"no run of the baseline {grid.baseline!r} has a result, so there is nothing to compare with: "
            f"{(failed.problem or 'it failed').splitlines()[-1]} (its log: {failed.folder}.log)"
        )
    scores: dict[str, EvaluationScores] = {}
    for variant, cell in chosen.items():
        of_cell = {seed: found[EVALUATION] for (name, seed), found in answers.items() if name == cell}
        scores[variant] = EvaluationScores(scores_of(metric, of_cell), of_cell)
    kinds = {entry.variant: entry.kind for entry in done}
    students = {name: cell for name, cell in chosen.items() if kinds[name] == STUDENT}
    teachers = _teachers(grid, metric, answers, students)
    if rows_of is not None:
        own = chosen[grid.baseline]
        without, said = _baselines_without_runs(grid, metric, lambda seed: rows_of(own, seed))
        scores |= without
        kinds |= {name: name for name in without}
        notes += said
        if not teachers:
            notes.append("What the teacher scores on the rows for evaluation is not known, so it is no row here.")
    if rows_of is not None or len(teachers) > 1:
        scores |= teachers
        kinds |= dict.fromkeys(teachers, TEACHER)
    comparisons = Compared(metric, scores)
    names = [name for name in scores if name != grid.baseline]
    against = dict(zip(names, _family(comparisons, [(name, grid.baseline) for name in names]), strict=True))
    rows = [
        _row(name, kinds[name], chosen.get(name, name), scores[name], held_out, done, against.get(name))
        for name in scores
    ]
    for row in rows:
        row.chosen_from = len({entry.cell for entry in done if entry.variant == row.name}) or 1
    on_held_out = {row.name: held_out[row.cell] for row in rows if row.kind == STUDENT and row.cell in held_out}
    example = scores[grid.baseline].answers
    return Comparison(
        command_line="",
        task=data.name,
        metric=metric,
        baseline=grid.baseline,
        seeds=list(grid.seeds),
        examples=len(next(iter(example.values())).ids),
        held_out_examples=max(
            (len(found[HELD_OUT].ids) for found in answers.values() if HELD_OUT in found), default=0
        ),
        rows=rows,
        runs=list(entries),
        best=choose(on_held_out, metric) if on_held_out else None,
        over_baselines=_over_baselines(comparisons, kinds),
        notes=notes,
    )


def _held_out(
    done: Sequence[RunEntry], answers: Mapping[tuple[str, int], Mapping[str, Predictions]], metric: str
) -> dict[str, HeldOutScores]:
    """What each cell scores on held-out rows, by the cells' names."""
    found: dict[str, dict[int, Predictions]] = {}
    for entry in done:
        if HELD_OUT in answers[entry.cell, entry.seed]:
            found.setdefault(entry.cell, {})[entry.seed] = answers[entry.cell, entry.seed][HELD_OUT]
    return {cell: HeldOutScores(scores_of(metric, by_seed)) for cell, by_seed in found.items()}


def _drop_other_controls(done: list[RunEntry]) -> list[str]:
    """Takes out controls whose plans were not the identity, and says so."""
    notes = []
    for variant in dict.fromkeys(entry.variant for entry in done if entry.kind == CONTROL):
        own = [entry for entry in done if entry.variant == variant]
        if not is_identity([Path(entry.folder) for entry in own]):
            done[:] = [entry for entry in done if entry.variant != variant]
            notes.append(
                f"There is no {variant}: its answers have several tokens, among which the plan still moves mass."
            )
    return notes


def _baselines_without_runs(
    grid: Grid, metric: str, data_of_seed: "Callable[[int], RunData]"
) -> tuple[dict[str, EvaluationScores], list[str]]:
    """The most frequent label, and TF-IDF."""
    found: dict[str, dict[int, Predictions]] = {}
    missing: dict[str, None] = {}
    for seed in grid.seeds:
        answers = answers_without_model(data_of_seed(seed))
        missing |= dict.fromkeys(why_without_model(data_of_seed(seed), answers))
        for name, one in answers.items():
            found.setdefault(name, {})[seed] = one
    scored = {name: own for name, own in found.items() if all(metric in one.metrics for one in own.values())}
    notes = [f"{name} has no {metric}, so it is no row here." for name in found if name not in scored]
    notes += missing
    return {name: EvaluationScores(scores_of(metric, by_seed), by_seed) for name, by_seed in scored.items()}, notes


def _teachers(
    grid: Grid,
    metric: str,
    answers: Mapping[tuple[str, int], Mapping[str, Predictions]],
    students: Mapping[str, str],
) -> dict[str, EvaluationScores]:
    """
    The teachers themselves, the baseline's first: as far as variants have teachers that score differently (another
    model, answers that are balanced), each of these.
    """
    found: dict[str, EvaluationScores] = {}
    for variant in (grid.baseline, *(name for name in students if name != grid.baseline)):
        told = {seed: answers.get((students[variant], seed), {}).get(OF_TEACHER) for seed in grid.seeds}
        known = {seed: one for seed, one in told.items() if one is not None and metric in one.metrics}
        if not known:
            continue
        one = EvaluationScores(scores_of(metric, known), known)
        if not any(_alike(one, other) for other in found.values()):
            found[TEACHER if variant == grid.baseline else f"{TEACHER} of {variant}"] = one
    return found


def _alike(one: EvaluationScores, other: EvaluationScores) -> bool:
    """Whether two teachers score the same, seed by seed, as far as both are known."""
    both = one.by_seed.keys() & other.by_seed.keys()
    return all(abs(one.by_seed[seed] - other.by_seed[seed]) < _ALIKE for seed in both)


def _family(comparisons: Compared, pairs: Sequence[tuple[str, str]]) -> list[Contrast | None]:
    """Differences with p values that hold for all of them together."""
    differences = [comparisons.difference(*pair) for pair in pairs]
    return [
        None if one is None else _contrast(one, p) for one, p in zip(differences, adjusted(differences), strict=True)
    ]


def _contrast(one: Difference, p_holm: float | None) -> Contrast:
    return Contrast(one.estimate, one.low, one.high, one.p, p_holm, one.p_seeds, one.seeds, one.examples)


def _over_baselines(comparisons: Compared, kinds: Mapping[str, str]) -> dict[str, dict[str, Contrast]]:
    """How much higher each student scores than what needs no teacher; one family for each of these."""
    students = [name for name, kind in kinds.items() if kind == STUDENT]
    found = {}
    for rival in (name for name, kind in kinds.items() if kind in WITHOUT_TEACHER):
        contrasts = _family(comparisons, [(student, rival) for student in students])
        found[rival] = {name: one for name, one in zip(students, contrasts, strict=True) if one is not None}
    return found


def _row(
    name: str,
    kind: str,
    cell: str,
    scores: EvaluationScores,
    held_out: Mapping[str, HeldOutScores],
    done: Sequence[RunEntry],
    against: Contrast | None,
) -> ComparedRow:
    mean, sd = mean_and_sd(list(scores.by_seed.values()))
    own = [entry for entry in done if entry.cell == cell and entry.variant == name]
    # What no seed changes has no spread over seeds.
    varies = bool(own) or (sd is not None and sd > 0)
    return ComparedRow(
        name,
        kind,
        cell,
        dict(scores.by_seed),
        mean,
        sd if varies else None,
        mean_and_sd(list(held_out[cell].by_seed.values()))[0] if cell in held_out else None,
        mean_and_sd([entry.seconds or 0.0 for entry in own])[0] if own else None,
        max((entry.memory_bytes or 0 for entry in own), default=0) or None,
        against=against,
    )


def curves_of(found: Comparison) -> list[Drawing]:
    """How the rows of the table learnt: means over seeds of their loss, and of their score where it was logged."""
    rows = [row for row in found.rows if any(run.cell == row.cell for run in found.runs)][:_MOST_CURVES]
    drawn = []
    for key, title, unit in (("loss", "Loss", ""), (f"eval_{found.metric}", f"{found.metric} while training", "")):
        points: dict[int, dict[str, float]] = {}
        for row in rows:
            for step, value in _means(found, row.cell, key).items():
                points.setdefault(step, {})[row.name] = value
        records = [{"step": step, **points[step]} for step in sorted(points)]
        drawn.append(draw_plot(Plot(title, unit, {row.name: row.name for row in rows}), records))
    return [curve for curve in drawn if curve is not None]


def _means(found: Comparison, cell: str, key: str) -> dict[int, float]:
    """Means over the seeds of a cell of what was logged at each step at which all of them logged it."""
    logged = []
    for run in found.runs:
        if run.cell == cell and run.problem is None:
            records = read_records(Path(run.folder) / METRICS_FILE)
            logged.append({int(r["step"]): float(r[key]) for r in records if isinstance(r.get(key), int | float)})
    steps = set.intersection(*map(set, logged)) if logged else set()
    return {step: sum(one[step] for one in logged) / len(logged) for step in steps}
