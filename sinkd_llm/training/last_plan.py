"""The last transport plan that a run looked at, and which training rows it is of."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sinkd_llm.objectives import PlanPart
from sinkd_llm.report.transport_plan import KeptPlan, PlanRow

# Of a prompt as long as a page its end is what the answer follows.
_LONGEST_TEXT = 400


@dataclass(frozen=True, eq=False)
class LastPlan:
    """
    Parts of the plans of a micro-batch, still on their device.

    Attributes:
        parts (`Mapping[str, PlanPart]`): by the name of the term.
        examples (sequence of `str`): the names of the micro-batch's rows.
        step (`int`): the training step.
    """

    parts: Mapping[str, PlanPart]
    examples: Sequence[str]
    step: int

    def kept(self, rows: Any) -> KeptPlan:
        """
        The plan of the term that the loss has, of two terms of the first, with what its rows say.

        Args:
            rows (`Dataset`): the training rows, by whose ids the micro-batch names its own.
        """
        term, part = next(iter(self.parts.items()))
        examples, places = part.example_n.tolist(), part.position_n.tolist()
        names = [self.examples[example] for example in examples]
        found = _rows_named(set(names), rows)
        students = [_plan_row(name, found.get(name), place) for name, place in zip(names, places, strict=True)]
        columns = part.plan_nm.shape[1]
        teachers = students if part.same_rows else [PlanRow("") for _ in range(columns)]
        masses = part.plan_nm.float().tolist()
        return KeptPlan(term, self.step, masses, students, teachers, part.problem, part.same_rows)


def _rows_named(names: set[str], rows: Any) -> dict[str, Mapping[str, Any]]:
    """The training rows of these names: their ids, or, where they have none, their places."""
    if "id" not in rows.column_names:
        return {name: rows[index] for index in range(len(rows)) if (name := f"row {index}") in names}
    places = {str(name): index for index, name in enumerate(rows["id"]) if str(name) in names}
    return {name: rows[index] for name, index in places.items()}


def _plan_row(name: str, row: Mapping[str, Any] | None, place: int) -> PlanRow:
    if row is None:
        return PlanRow(name, place=place)
    texts = [str(row[column]) for column in ("text", "text_pair") if row.get(column)]
    text = " | ".join(texts) or str(row.get("prompt", ""))
    choices, label = row.get("choices"), row.get("label")
    gold = ""
    if choices and isinstance(label, int) and 0 <= label < len(choices):
        gold = str(choices[label]).strip()
    elif not choices:
        gold = str(row.get("completion", "")).strip()[:_LONGEST_TEXT]
    return PlanRow(name, text[-_LONGEST_TEXT:], gold, place)
