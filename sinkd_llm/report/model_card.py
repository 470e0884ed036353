"""README.md of a student's folder: the model card, made of what a run has recorded.

Data rows do not stand in it, only how many there are and which classes they are of: a card is published.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sinkd_llm.files import write_whole
from sinkd_llm.integrity import ANSWERS_FILE
from sinkd_llm.report.card_code import PlainCode, answers_of, prompt_of, rows_code, texts_of
from sinkd_llm.report.card_input import chosen_in_words, input_in_words, input_templates
from sinkd_llm.report.classes import Classes, classes_of
from sinkd_llm.report.model_files import NO_MODEL, PIPELINES, ModelFiles
from sinkd_llm.report.page import RunFiles
from sinkd_llm.report.predictions import EVALUATION
from sinkd_llm.report.results import OF_PROBABILITIES, TEACHER, ResultRow, RunRecord, find_row
from sinkd_llm.report.rows_shown import WON, row_lists
from sinkd_llm.report.table import describe_rows, describe_training, quantities, summary
from sinkd_llm.report.templates import render_text
from sinkd_llm.report.terms import LOSS
from sinkd_llm.secrets import recordable
from sinkd_llm.units import format_score, format_share

CARD_FILE = "README.md"
# What PEFT leaves in each blank of its template.
_PEFT_BLANK = "[More Information Needed]"
_MARK = re.compile(r"\n<!-- made by sinkd-llm: ([0-9a-f]{32}) -->\n?$")
# A name of a hub: an owner, and a model or a data set.
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_MOST_CLASSES, _MOST_CONFUSIONS = 5, 5
# A class that is right less often than this is named as a limit.
_WEAK = 0.8
# What the hub calls a score -> its names here.
_OF_HUB = {"acc": "accuracy", "mcc": "matthews_correlation", "pearson": "pearsonr", "spearman": "spearmanr"}
_BIBTEX = """@inproceedings{cui2024sinkd,
  title     = {Sinkhorn Distance Minimization for Knowledge Distillation},
  author    = {Cui, Xiao and Qin, Yulei and Gao, Yuting and Zhang, Enwei and Xu, Zihan and Wu, Tong and Li, Ke and
               Sun, Xing and Zhou, Wengang and Li, Houqiang},
  booktitle = {Proceedings of LREC-COLING 2024},
  pages     = {14846--14858},
  year      = {2024},
  url       = {https://arxiv.org/abs/2402.17110}
}"""


@dataclass(frozen=True)
class CardFacts:
    """
    What a card says beside the records of the run.

    Attributes:
        task (`Mapping[str, Any]`): the keys of the task file; empty for rows without a task.
        columns (`tuple[str, ...]`): the columns that the student reads of a row, if texts in them make one.
        model ([`ModelFiles`]): what the folder holds.
        calibration (`str`): in words, what `sinkd calibrate` found; empty: it was not run.
    """

    task: Mapping[str, Any] = field(default_factory=dict)
    columns: tuple[str, ...] = ()
    model: ModelFiles = NO_MODEL
    calibration: str = ""


def facts_of_files(folder: Path) -> CardFacts | None:
    """
    What the configuration in a student's folder says of it; `None` where no model lies.

    Raises:
        InputError: if it is damaged.
    """
    model = ModelFiles.read(folder)
    return None if model is None else CardFacts(model=model)


def write_card(folder: Path, files: RunFiles, facts: CardFacts) -> bool:
    """
    Write `README.md` into a student's folder, unless somebody has written one there.

    Args:
        folder (`Path`): of the run.
        files ([`RunFiles`]): what it holds.
        facts ([`CardFacts`]): what else is known.

    Returns:
        `bool`: whether it was written.
    """
    path = folder / CARD_FILE
    if path.exists() and not is_ours(path.read_text(encoding="utf-8", errors="replace")):
        return False
    write_whole(path, render_card(folder.resolve().name, files, facts))
    return True


def is_ours(text: str) -> bool:
    """Whether a README is a card as this package made it, or PEFT's template: nobody has written in it since."""
    mark = _MARK.search(text)
    return _PEFT_BLANK in text if mark is None else mark[1] == _sum(text[: mark.start()])


def _sum(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def render_card(folder_name: str, files: RunFiles, facts: CardFacts) -> str:
    """The card as Markdown text, with the header that a hub reads."""
    record, task = files.record, facts.task
    hub_id = str(record.all_settings.get("hub_model_id") or "") if record.all_settings.get("push_to_hub") else ""
    name = hub_id.rsplit("/", 1)[-1] or folder_name
    rows = _shown_rows(record, facts)
    place = f'snapshot_download("{hub_id}")' if hub_id else '"."'
    metadata = task.get("metadata") or {}
    text = render_text(
        "card.md.jinja",
        header=_header(name, record, facts),
        name=name,
        what=_what(record),
        description=str(metadata.get("description") or ""),
        facts=_facts(record, facts),
        # A number is no choice with a probability.
        rows_code="" if facts.model.predicts_number else rows_code(facts.columns, task),
        calibrated=bool(facts.calibration),
        hub_model_id=hub_id,
        place=place,
        plain_code=_plain_code(record, facts, place),
        library="PEFT" if facts.model.is_adapter else "Transformers",
        reads=input_in_words(texts_of(task, facts.model)),
        templates=input_templates(task, facts.model),
        chosen=chosen_in_words(facts.model),
        choices=_listed(task.get("doc_to_choice")),
        training=_training(record),
        layers=str((record.layers or {}).get("in_words", "")),
        data=_data(task),
        models=[row.name for row in rows],
        scores=[
            (what, [f"{cell.value} {cell.interval}".strip() for cell in cells])
            for what, cells in quantities(rows).items()
        ],
        scored_on=_scored_on(record, facts),
        calibration=f"{facts.calibration} {_calibrated(facts)}".strip() or _uncalibrated(rows),
        limits=_limits(files),
        bibtex=_BIBTEX if _number(record, "sinkhorn_weight") and record.command == "distill" else "",
        version=record.versions.get("sinkd-llm", ""),
        command_line=recordable(record.command_line),
    ).rstrip("\n")
    return f"{text}\n<!-- made by sinkd-llm: {_sum(text)} -->\n"


def _shown_rows(record: RunRecord, facts: CardFacts) -> list[ResultRow]:
    """
    The teacher and the trained student: what the student was before is of no use to others.

    Of a calibrated student, scores of probabilities are left out: the run took them of others than it gives now.
    """
    teacher = find_row(record.rows, TEACHER)
    rows = [
        *([teacher] if teacher is not None else []),
        *(replace(row, name=record.subject) for row in record.rows[-1:]),
    ]
    left_out = OF_PROBABILITIES if facts.calibration else ()
    return [
        replace(row, metrics={name: value for name, value in row.metrics.items() if name not in left_out})
        for row in rows
    ]


def _scored_on(record: RunRecord, facts: CardFacts) -> str:
    said = f"On {record.evaluation}."
    if any(row.intervals for row in record.rows):
        said += " In brackets: 95 % intervals, over the rows."
    scored = [name for name in OF_PROBABILITIES if record.rows and name in record.rows[-1].metrics]
    if facts.calibration and scored:
        said += f" Left out, as they were taken before the calibration: {', '.join(scored)}."
    return said


def _header(name: str, record: RunRecord, facts: CardFacts) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    base, rows = str(record.all_settings.get("model_name_or_path") or ""), _shown_rows(record, facts)[-1:]
    dataset = str(facts.task.get("dataset_path") or "")
    on_hub = _HUB_NAME.fullmatch(dataset) is not None
    results = [
        EvalResult(
            task_type=PIPELINES.get(facts.model.loads_as, "text-classification"),
            dataset_type=dataset if on_hub else record.task,
            dataset_name=str(facts.task.get("task") or record.task),
            metric_type=_OF_HUB.get(metric, metric),
            metric_name=metric,
            metric_value=round(value, 5),
        )
        for row in rows
        for metric, value in row.metrics.items()
    ]
    known: dict[str, Any] = {
        "base_model": base if _HUB_NAME.fullmatch(base) else None,
        "base_model_relation": _relation(facts) if _HUB_NAME.fullmatch(base) else None,
        "datasets": [dataset] if on_hub else None,
        "pipeline_tag": PIPELINES.get(facts.model.loads_as),
    }
    data = ModelCardData(
        model_name=name if results else None,
        eval_results=results or None,
        library_name="peft" if facts.model.is_adapter else "transformers",
        tags=["sinkd-llm", *(["knowledge-distillation"] if record.command == "distill" else [])],
        **{key: value for key, value in known.items() if value is not None},
    )
    return str(data.to_yaml()).strip()


def _relation(facts: CardFacts) -> str:
    return "adapter" if facts.model.is_adapter else "finetune"


def _what(record: RunRecord) -> str:
    teacher, base = _teacher(record), _name_of(record.all_settings.get("model_name_or_path"))
    started = base or "Some layers of its teacher"
    if record.command != "distill":
        return f"{started}, fine-tuned on {record.task}."
    said = summary(record.rows)
    return f"{started}, distilled on {record.task} from {teacher or 'a teacher'}." + (f" {said}" if said else "")


def _facts(record: RunRecord, facts: CardFacts) -> list[tuple[str, str]]:
    metadata = facts.task.get("metadata") or {}
    found = [
        ("base", _name_of(record.all_settings.get("model_name_or_path"))),
        ("teacher", _teacher(record)),
        ("task", str(facts.task.get("task") or record.task)),
        ("form", "an adapter of PEFT" if facts.model.is_adapter else "a whole model"),
        ("data's licence, as the task file states it", str(metadata.get("license") or "not stated")),
        ("trained", record.finished),
    ]
    return [(name, value) for name, value in found if value]


def _teacher(record: RunRecord) -> str:
    """What a card calls the teacher: a model, a file or a server."""
    given = record.all_settings
    if record.command != "distill":
        return ""
    if name := _name_of(given.get("teacher_model_name_or_path")):
        return name
    if file := _name_of(given.get("teacher_file")):
        return f"the answers in {file}"
    if given.get("teacher_url"):
        return f"{_name_of(given.get('teacher_served_model')) or 'a model'} on a server"
    return f"the cached answers in {_name_of(given.get('teacher_cache'))}" if given.get("teacher_cache") else ""


def _name_of(value: Any) -> str:
    """A model or file by its name: where it lay on the machine is nothing to others."""
    text = str(value or "").rstrip("/\\")
    return text if _HUB_NAME.fullmatch(text) else re.split(r"[/\\]", text)[-1]


def _plain_code(record: RunRecord, facts: CardFacts, place: str) -> str:
    longest = record.all_settings.get("max_length")
    return PlainCode(
        facts.model,
        place,
        texts=texts_of(facts.task, facts.model),
        prompt=prompt_of(facts.task),
        answers=answers_of(facts.task),
        max_length=longest if isinstance(longest, int) else None,
        calibrated=bool(facts.calibration),
    ).written()


def _calibrated(facts: CardFacts) -> str:
    """How probabilities are calibrated, and by whom, after what `sinkd calibrate` found."""
    if not facts.calibration:
        return ""
    classifier = facts.model.is_classifier
    what = "logits" if classifier else "the summed log-likelihoods of the answers"
    return (
        f"Before the softmax {what} are divided by the temperature or, where a scale and a bias a class were fitted, "
        f"log-probabilities are multiplied by the one and shifted by the other; {ANSWERS_FILE} holds the numbers. "
        f"load_student does so{' and the code above' * classifier}; other code, such as a pipeline of Transformers, "
        "gives probabilities that are not calibrated."
    )


def _listed(choices: Any) -> str:
    if not isinstance(choices, list):
        return str(choices or "")
    shown = [str(choice) for choice in choices[:100]]
    return ", ".join(shown) + (f" and {len(choices) - 100} more" if len(choices) > 100 else "")


def _training(record: RunRecord) -> str:
    rows = describe_rows(record.training)
    done = describe_training(record.training) + (f" on {rows}" if rows else "") + f", seed {record.seed}."
    if record.command != "distill":
        return f"Cross-entropy on the answers; {done}"
    parts, alpha = [], _number(record, "alpha")
    if alpha < 1:
        parts.append(_part(1 - alpha, "ce"))
    divergence = str(record.settings.get("divergence", "none"))
    if divergence != "none" and alpha > 0:
        parts.append(_part(alpha, divergence) + f" at temperature {_number(record, 'temperature'):g}")
    parts += [
        _part(weight, name)
        for name in ("sinkhorn", "transported", "hidden", "queue")
        if (weight := _number(record, f"{name}_weight"))
    ]
    return f"The loss: {' + '.join(parts) or 'see the settings'}. {done}"


def _part(weight: float, term: str) -> str:
    return f"{weight:g} × {LOSS.labels.get(term, term)}"


def _number(record: RunRecord, name: str) -> float:
    """A setting that is a number; 0 where it is none."""
    value = record.settings.get(name, record.all_settings.get(name))
    return float(value) if isinstance(value, int | float) else 0.0


def _data(task: Mapping[str, Any]) -> str:
    metadata = task.get("metadata") or {}
    if not task:
        return ""
    source = str(task.get("dataset_path") or "")
    name = str(task.get("dataset_name") or "")
    where = f"{source}{f' ({name})' if name else ''}" if _HUB_NAME.fullmatch(source) else "Files of the user's own"
    licence = metadata.get("license")
    said = f"{where}. " + (f"Its licence, as the task file states it: {licence}." if licence else "")
    return f"{said.strip()} {metadata.get('citation') or ''}".strip()


def _uncalibrated(rows: Sequence[ResultRow]) -> str:
    error = rows[-1].metrics.get("ece") if rows else None
    if error is None:
        return ""
    return (
        f"Its probabilities are as training left them: on the scored rows they are {format_score(error)} from how "
        "often it is right (expected calibration error). 'sinkd calibrate' fits a temperature on held-out rows."
    )


def _limits(files: RunFiles) -> list[str]:
    """What the run found that the student does not do well."""
    found = []
    for one in row_lists(files.answers, files.record.subject):
        if one.title != WON:
            found.append(f"{one.title}: {one.total:,} of {len(files.answers[EVALUATION].ids):,} scored rows.")
    classes = classes_of(files.record.rows)
    if classes is not None:
        found += _of_classes(classes)
    return found


def _of_classes(classes: Classes) -> list[str]:
    weak = [line for line in classes.lines if line.support and line.f1 < _WEAK][:_MOST_CLASSES]
    found = []
    if weak:
        each = ", ".join(
            f"{line.name} ({format_share(line.recall)} of its {line.support} rows found)" for line in weak
        )
        found.append(f"Weakest classes, by F1: {each}.")
    confusion = classes.confusions[0]
    most = [entry for entry in confusion.largest if entry[2] > 1][:_MOST_CONFUSIONS]
    if most and len(confusion.names) > 2:
        each = ", ".join(f"{right} answered as {chosen} ({rows})" for right, chosen, rows in most)
        found.append(f"Most frequent confusions: {each}.")
    return found
