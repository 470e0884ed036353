"""
A trained student is calibrated, routed and exported, and what it is worth then is written down:

    python experiments/in_use.py --student runs/student --task rows/task.yaml --teacher_file rows/teacher.jsonl \
        --output runs/in-use

Each of its forms (as it was trained, and as int8 for ONNX Runtime) is calibrated and routed by itself on the training
rows that were held out: at least 98 % of what it answers shall be as its teacher answers. `in_use.json` in the folder
has what it may answer, the check on the rows for evaluation, size and latency.
"""

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

from sinkd_llm.answering.load import load_student
from sinkd_llm.answering.timing import TIMED, latencies_ms
from sinkd_llm.files import bytes_under, write_whole
from sinkd_llm.report.results import AFTER, TEACHER, RunRecord, find_row
from sinkd_llm.runs.calibrating import run_calibrate
from sinkd_llm.runs.export import run_export
from sinkd_llm.runs.routing import run_route
from sinkd_llm.tasks import load_task

TARGET = 0.98


def form_of(folder: Path, weights: str, task: str, teacher_file: str) -> dict[str, Any]:
    """What a form of the student is worth: it is calibrated and routed in its folder."""
    calibrated = run_calibrate(str(folder), task)
    routed = run_route(str(folder), task, of="agreement", target=TARGET, teacher_file=teacher_file)
    assert routed.checked is not None
    return {
        "bytes": bytes_under(folder, weights),
        "temperature": calibrated.calibration.temperature if calibrated.kept else 1.0,
        "before": calibrated.before,
        "after": calibrated.after,
        "threshold": routed.route.threshold,
        "held_out": _answered(routed.chosen),
        "evaluation": _answered(routed.checked),
    }


def _answered(found: Any) -> dict[str, Any]:
    return {
        "rows": found.rows,
        "coverage": found.coverage,
        "agreement": found.share_right,
        "at_least": found.lower_bound,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--student", required=True, help="folder of the run")
    parser.add_argument("--task", required=True, help="the task file of its rows")
    parser.add_argument("--teacher_file", required=True, help="the teacher's answers to all of them")
    parser.add_argument("--output", required=True, help="folder of the forms")
    arguments = parser.parse_args()
    output, student = Path(arguments.output), Path(arguments.student)
    shutil.rmtree(output, ignore_errors=True)
    trained, int8 = output / "trained", output / "int8"
    shutil.copytree(student, trained)
    exported = run_export(str(trained), int8, "onnx-int8", task=arguments.task)
    forms = {
        "as it was trained": form_of(trained, "*.safetensors", arguments.task, arguments.teacher_file),
        "int8": form_of(int8, "*.onnx", arguments.task, arguments.teacher_file),
    }
    rows = load_task(arguments.task).load("validation", limit=TIMED, seed=0)
    students = [load_student(folder, arguments.task) for folder in (trained, int8)]
    texts = [{"text": row["text"], "prompt": row["prompt"]} for row in rows]
    examples = [example for _, _, example in students[0].examples(students[0].placed(texts))]
    for form, (median, slow) in zip(forms.values(), latencies_ms(students, examples), strict=True):
        form |= {"latency_ms_p50": median, "latency_ms_p95": slow}
    record = RunRecord.read(student)
    scores = {name: row.metrics for name in (TEACHER, AFTER) if (row := find_row(record.rows, name)) is not None}
    found = {"scores": scores, "differing": exported.comparison.differing, "compared": exported.comparison.rows}
    write_whole(output / "in_use.json", json.dumps({**found, "forms": forms}, indent=1) + "\n")


if __name__ == "__main__":
    main()
