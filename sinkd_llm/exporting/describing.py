"""The README of an export: what it is, how it is loaded, how it was compared with its student."""

from pathlib import Path
from typing import TYPE_CHECKING

from sinkd_llm.exporting.formats import FORMATS, auto_class
from sinkd_llm.models.kinds import kind_of, output_size
from sinkd_llm.report.card_code import rows_code

if TYPE_CHECKING:
    from sinkd_llm.exporting.comparison import Comparison
    from sinkd_llm.exporting.formats import Exported

# Choices that are named; the rest stand in sinkd_answers.json.
_NAMED = 20


def readme(exported: "Exported", name: str, found: "Comparison") -> str:
    """
    The text of an export's README.

    Args:
        exported ([`Exported`]): the student.
        name (`str`): of the format.
        found ([`Comparison`]): of the export with its student.
    """
    student = exported.student
    calibration = student.facts.calibration
    labels = f", num_labels={output_size(student.model)}" if kind_of(student.model).scores_classes else ""
    rows = rows_code(student.columns, student.task.config)
    use = FORMATS[name].use.format(auto=auto_class(student), labels=labels, rows=rows)
    largest = "" if found.largest is None else f", and log-probabilities differ by up to {found.largest:.2g}"
    sure = "not calibrated" if calibration is None else f"divided by the temperature {calibration.temperature:.4g}"
    if calibration is not None and calibration.vector is not None:
        sure = "calibrated by a scale and a shift of each class"
    lines = [
        f"# {Path(exported.source.name).name}, as {name}",
        f"A student for the task `{student.task.name}`, exported by `sinkd export`. {_choices(student.choices)}",
        f"The prompt, the choices and how sure the student is (log-probabilities are {sure}) stand in "
        "`sinkd_answers.json`.",
        f"Of {found.rows} rows, {found.differing} get another answer from it than from the student{largest}.",
        "## Use",
        "What follows is run in this folder.",
        use,
    ]
    if name != "gguf":
        columns = _columns(student.columns)
        lines.append(f"`sinkd predict . rows.csv` answers a file of rows, whose header names {columns}.")
    return "\n\n".join(lines) + "\n"


def _columns(columns: list[str]) -> str:
    named = " and ".join(f"`{column}`" for column in columns)
    return f"the column{'s' * (len(columns) != 1)} {named}"


def _choices(choices: tuple[str, ...] | None) -> str:
    if choices is None:
        return "Its choices are each row's own, or its answers are written."
    named = ", ".join(f"`{' '.join(choice.split()).replace('`', '')}`" for choice in choices[:_NAMED])
    more = f" and {len(choices) - _NAMED} more" if len(choices) > _NAMED else ""
    return f"Its {len(choices)} choices: {named}{more}."
