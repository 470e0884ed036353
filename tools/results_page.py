"""
Writes docs/results.md with its figures and README's block of results from `experiments/results`:
`python -m tools.results_page`.

`experiments/page.yaml` says which results stand in which section, and what is asked there; every number is a file's.
"""

import argparse
import io
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import yaml
from rich.console import Console

from sinkd_llm.report.comparison import CONTROL, MAJORITY, STUDENT, Contrast, interval_of, mean_of, p_of
from sinkd_llm.report.results import ResultRow
from sinkd_llm.report.table import results_table
from sinkd_llm.units import NOT_KNOWN, format_bytes, format_duration
from tools.markdown import table
from tools.result_files import RESULTS, ROOT, Result, Row, found_of
from tools.results_figures import figure_of

LAYOUT, FIGURES = ROOT / "experiments" / "page.yaml", ROOT / "experiments" / "figures"
PAGE, README, COMMANDS = ROOT / "docs" / "results.md", ROOT / "README.md", ROOT / "docs" / "command_line.md"
COLUMNS = 80
BEGIN, END = "<!-- made by tools/results_page.py -->", "<!-- end of what tools/results_page.py made -->"
_STEPS_OF_COLUMNS = "In brackets the step that makes a column: `python experiments/run.py NAME`."


def score_cell(row: Row | None) -> str:
    """`0.826 ± 0.003`."""
    return "" if row is None else mean_of(float(row["mean"]), _number(row["sd"]))


def difference_cell(row: Row | None) -> str:
    """`-0.025 [-0.032, -0.018], p < 0.001`: of the row to the baseline, p after Holm's correction."""
    if row is None:
        return ""
    estimate = _number(row["estimate"])
    if estimate is None:
        return NOT_KNOWN
    one = Contrast(estimate, _number(row["low"]), _number(row["high"]), p_holm=_number(row["p_holm"]))
    return f"{estimate:+.3f} {interval_of(one)}, {p_of(one)}"


def _number(cell: str) -> float | None:
    return float(cell) if cell else None


def names_of(results: Iterable[Result]) -> list[str]:
    """The rows of the tables, in their order; the most frequent label is nobody's rival and left out."""
    return [name for name in dict.fromkeys(name for one in results for name in one.rows) if name != MAJORITY]


def scores(results: Mapping[str, Result]) -> list[str]:
    """A table of scores of each objective in each result."""
    return _by_objective("", names_of(results.values()), results, score_cell)


def _by_objective(
    corner: str, names: Sequence[str], results: Mapping[str, Result], cell: Callable[[Row | None], str]
) -> list[str]:
    """Objectives down and results across, or the other way round, where there are more results than objectives."""
    if len(results) <= len(names):
        rows = [[_shown(name, results), *(cell(one.rows.get(name)) for one in results.values())] for name in names]
        return table([corner, *results], rows)
    rows = [[title, *(cell(one.rows.get(name)) for name in names)] for title, one in results.items()]
    return table([corner, *(_shown(name, results) for name in names)], rows)


def each(results: Mapping[str, Result]) -> list[str]:
    """A table of each result, with its scores and differences: for results that have no objective in common."""
    lines: list[str] = []
    for title, one in results.items():
        rows = [[name, score_cell(row), difference_cell(row)] for name, row in one.rows.items()]
        lines += ["", *table([title, "score", f"difference to {one.baseline}"], rows)]
    return lines[1:]


def held_out(results: Mapping[str, Result]) -> list[str]:
    """A table of scores on held-out training rows, for what only settings were chosen by."""
    rows = [
        [name, *(f"{float(one.rows[name]['held_out']):.3f}" if name in one.rows else "" for one in results.values())]
        for name in names_of(results.values())
    ]
    return table(["on held-out training rows", *results], rows)


def differences(results: Mapping[str, Result]) -> list[str]:
    """A table of differences to the baseline, of rows with a teacher that some result has."""
    shown = [
        name
        for name in names_of(results.values())
        if any(one.rows.get(name, {}).get("estimate") for one in results.values())
    ]
    if not shown:
        return []
    to = dict.fromkeys(one.baseline for one in results.values())
    return ["", *_by_objective(f"difference to {', '.join(to)}", shown, results, difference_cell)]


def _shown(name: str, results: Mapping[str, Result]) -> str:
    """A row's name; in italics what is no student of a teacher."""
    kinds = {one.rows[name]["kind"] for one in results.values() if name in one.rows}
    return name if kinds <= {STUDENT, CONTROL} else f"*{name}*"


def sources(results: Mapping[str, Result]) -> list[str]:
    """How each column was made: its command, rows and cost."""
    lines = [""]
    for title, one in results.items():
        about = one.about
        runs = [run for run in one.runs() if run["seconds"]]
        trained = sum(float(run["seconds"]) for run in runs)
        lines.append(
            f"- {title}: `python experiments/run.py {one.name}`; seeds {', '.join(map(str, about['seeds']))}, "
            f"{about['examples']:,} rows for evaluation, {about['held_out_examples']:,} held-out training rows; "
            f"{len(runs)} students in {format_duration(trained)}; {about['metric']}."
        )
    return lines


def with_scores(text: str, found: Iterable[Mapping[str, Any]]) -> str:
    """
    A text in which `{NAME}` stands for the score of a fine-tuned model, `teacher-banking77`.

    Args:
        text (`str`): of a section.
        found: what the section's results were made with; results of several machines have models of their own.
    """
    models = [one["models"] for one in found]

    def score(name: re.Match[str]) -> str:
        shown = sorted({f"{one[name[1]]:.3f}" for one in models if name[1] in one})
        return shown[0] if len(shown) == 1 else f"{shown[0]} to {shown[-1]}"

    return re.sub(r"\{([a-z0-9_-]+)\}", score, text)


def section(content: Mapping[str, Any]) -> list[str]:
    """A section of the page; results that are not there yet are left out, and a section without any is empty."""
    wanted: Mapping[str, str] = content["results"]
    results = found_of(wanted)
    if wanted and not results:
        return []
    text = with_scores(content["text"], (one.about for one in results.values()))
    lines = [f"\n## {content['title']}\n", text.strip(), ""]
    if results:
        if content.get("held_out"):
            lines += held_out(results)
        elif content.get("separate"):
            lines += each(results)
        else:
            lines += [*scores(results), *differences(results)]
        lines += [
            line
            for name, figure in content.get("figures", {}).items()
            for line in ("", f"![{figure['says']}](../experiments/figures/{name}.svg)")
        ]
        if "reading" in content:
            lines += ["", content["reading"].strip()]
        lines += sources(results)
    return lines


def in_use(content: Mapping[str, Any]) -> list[str]:
    """A section of students that were calibrated, routed and exported; empty while there are none."""
    known = _known_in_use()
    if not known:
        return []
    lines = [f"\n## {content['title']}\n", with_scores(content["text"], known.values()).strip(), ""]
    rows = []
    for title, name in content["in_use"].items():
        for form, found in known[name]["forms"].items() if name in known else ():
            chosen, checked = found["held_out"], found["evaluation"]
            rows.append(
                [
                    f"{title}, {form}",
                    f"{chosen['coverage']:.1%}",
                    f"{checked['coverage']:.1%}",
                    f"{checked['agreement']:.2%} ({checked['at_least']:.2%})",
                    f"{found['after']['ece']:.3f}",
                    format_bytes(found["bytes"]),
                    f"{found['latency_ms_p50']:.1f} / {found['latency_ms_p95']:.1f} ms",
                ]
            )
    header = ["", "answered, held-out rows", "answered, evaluation", "as the teacher (at least)", "calibration error"]
    lines += [*table([*header, "size", "a row alone, p50 / p95"], rows), ""]
    lines += [
        f"- {title}: `python experiments/run.py {name}`; {known[name]['machine']}."
        for title, name in content["in_use"].items()
        if name in known
    ]
    return lines


def figures() -> dict[str, str]:
    """The figures of all sections, as SVG, by the names of their files."""
    drawn = {
        f"{name}.svg": figure_of(figure, found_of(content["results"]))
        for content in _layout()["sections"]
        for name, figure in content.get("figures", {}).items()
    }
    return {name: svg for name, svg in drawn.items() if svg is not None}


def _known_in_use() -> dict[str, Any]:
    file = RESULTS / "in_use.json"
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    return content


def not_measured(sections: Iterable[Mapping[str, Any]]) -> list[str]:
    """What the page has room for and no result: each section with its columns, and the names of their steps."""
    known = _known_in_use()
    found = []
    for content in sections:
        wanted = {**content.get("results", {}), **content.get("in_use", {})}
        columns = [f"{t} (`{n}`)" for t, n in wanted.items() if not (RESULTS / n).is_dir() and n not in known]
        if columns:
            found.append(f"- {content['title']}: {', '.join(columns)}")
    return ["\n## Not measured yet\n", _STEPS_OF_COLUMNS, "", *found] if found else []


def _layout() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(LAYOUT.read_text(encoding="utf-8"))
    return content


def machines() -> str:
    """On what all results were made."""
    found = []
    for folder in sorted(path for path in RESULTS.iterdir() if path.is_dir()):
        about = json.loads((folder / "about.json").read_text(encoding="utf-8"))
        versions = ", ".join(f"{name} {number}" for name, number in about["versions"].items())
        found.append(f"{about['machine']}, one thread a student, {versions}")
    return "; ".join(dict.fromkeys(found))


def page() -> str:
    """The whole of docs/results.md."""
    layout = _layout()
    lines = [layout["introduction"].strip(), "", f"Made on: {machines()}."]
    for content in layout["sections"]:
        lines += in_use(content) if "in_use" in content else section(content)
    lines += not_measured(layout["sections"])
    return "\n".join([*lines, ""])


def readme_block() -> str:
    """README's block of results."""
    content = _layout()["readme"]
    results = {title: Result.read(name) for title, name in content["results"].items()}
    rows = [
        [label, *(score_cell(one.rows.get(name)) for one in results.values())]
        for name, label in content["rows"].items()
    ]
    text = content["text"].strip().replace("{p}", _p_of_all(results.values(), content["rows"]))
    scored = [text, "", *table(["", *results], rows)]
    for sentence in content["beside"]:
        scored += ["", with_cells(**sentence).strip()]
    return "\n".join([*scored, "", *_readme_in_use(content["in_use"]), "", content["reading"].strip(), ""])


def with_cells(result: str, text: str) -> str:
    """A text in which `{NAME}` stands for the score of a row of a result, and `{NAME, difference}` to its baseline."""
    rows = Result.read(result).rows

    def cell(name: re.Match[str]) -> str:
        row = name[1].removesuffix(", difference")
        return score_cell(rows[row]) if row == name[1] else difference_cell(rows[row])

    return re.sub(r"\{([^}]+)\}", cell, text)


def _readme_in_use(content: Mapping[str, Any]) -> list[str]:
    """Students in use, on the rows for evaluation."""
    rows = []
    for label, name in content["rows"].items():
        found = _known_in_use()[name]["forms"][content["form"]]
        checked = found["evaluation"]
        shares = (f"{checked[key]:.1%}" for key in ("coverage", "agreement"))
        rows.append([label, *shares, format_bytes(found["bytes"]), f"{found['latency_ms_p50']:.0f} ms"])
    return [content["text"].strip(), "", *table(["", "answered", "as the teacher", "size", "a row"], rows)]


def _p_of_all(results: Iterable[Result], names: Iterable[str]) -> str:
    """`p < 0.01` for the largest p of the differences between some rows and the baselines."""
    found = [_number(one.rows[name]["p_holm"]) for one in results for name in names if one.rows[name]["p_holm"]]
    worst = max(p for p in found if p is not None)
    return next((f"p < {bound}" for bound in (0.001, 0.01, 0.05) if worst < bound), f"p up to {worst:.2f}")


def with_block(readme: str) -> str:
    """The text of README with the block as the results have it."""
    before, rest = readme.split(BEGIN)
    return f"{before}{BEGIN}\n{readme_block()}{END}{rest.split(END)[1]}"


def quickstart_table() -> str:
    """What `make quickstart` prints at its end, at 80 columns."""
    rows = [ResultRow.of(row) for row in _quickstart()["rows"]]
    console = Console(width=COLUMNS, file=io.StringIO(), color_system=None)
    with console.capture() as said:
        console.print(results_table(rows, COLUMNS))
    lines = [line.rstrip() for line in said.get().splitlines()]
    return "\n".join(line for line in lines if line)


def _quickstart() -> dict[str, Any]:
    content: dict[str, Any] = json.loads((RESULTS / "quickstart.json").read_text(encoding="utf-8"))
    return content


def with_quickstart(text: str) -> str:
    """A page whose code block of the quickstart's table is as its result has it."""
    table_now = f"```\n{quickstart_table()}\n```"
    return re.sub(r"```\n[^`]*student before[^`]*```", lambda _: table_now, text, count=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    for page_with_table in (README, COMMANDS):
        page_with_table.write_text(with_quickstart(page_with_table.read_text(encoding="utf-8")), encoding="utf-8")
    for name, svg in figures().items():
        FIGURES.mkdir(exist_ok=True)
        (FIGURES / name).write_text(svg, encoding="utf-8")
    PAGE.write_text(page(), encoding="utf-8")
    README.write_text(with_block(README.read_text(encoding="utf-8")), encoding="utf-8")
    sections = _layout()["sections"]
    wanted = [name for content in sections for name in {**content.get("results", {}), **content.get("in_use", {})}]
    missing = len(not_measured(sections)[3:])
    print(f"docs/results.md and README.md: {len(wanted)} results have a place, and {missing} sections lack some.")


if __name__ == "__main__":
    main()
