"""`sinkd evaluate`: score a model on a task, or on several."""

import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sinkd_llm.errors import InputError

if TYPE_CHECKING:
    from sinkd_llm.runs.arguments import EvaluateArguments
    from sinkd_llm.runs.evaluate import EvaluateResult, Evaluations


def main(argv: Sequence[str]) -> int:
    """
    Parse `argv`, score, print tables, write `--output`.

    Raises:
        InputError: at once for what cannot be scored; at the end for those of several tasks that could not be.
    """
    from sinkd_llm.cli.flag_table import check_names

    check_names("evaluate", argv)
    from trl import ModelConfig

    from sinkd_llm.cli.parsing import parse_evaluation
    from sinkd_llm.files import write_whole
    from sinkd_llm.models import build_quantization_config
    from sinkd_llm.runs import run_evaluations
    from sinkd_llm.runs.inputs import user_path
    from sinkd_llm.terminal import show

    args = parse_evaluation(argv)
    output = user_path("--output", args.output) if args.output is not None else None
    if output is not None:
        _check_output(output, args)
    found = run_evaluations(
        str(args.model_name_or_path),
        str(args.task),
        data_dir=args.data_dir,
        split=args.split,
        max_eval_samples=args.max_eval_samples,
        batch_size=args.batch_size,
        max_length=args.max_length,
        apply_chat_template=args.apply_chat_template,
        add_eos=args.add_eos,
        teacher_file=args.teacher_file,
        teacher_cache=args.teacher_cache,
        profile=args.profile,
        kind=args.model_kind,
        revision=args.model_revision,
        dtype=args.dtype,
        attn_implementation=args.attn_implementation,
        trust_remote_code=args.trust_remote_code,
        quantization_config=build_quantization_config(
            ModelConfig(dtype=args.dtype, load_in_4bit=args.load_in_4bit, load_in_8bit=args.load_in_8bit)
        ),
    )
    _show(args, found)
    if output is not None:
        text = _lines(args, found) if output.suffix.lower() == ".jsonl" else _scores(args, found)
        output.parent.mkdir(parents=True, exist_ok=True)
        write_whole(output, text)
        show(f"Scores and predictions are in {args.output}")
    if found.failed:
        reasons = "; ".join(f"{name}: {reason.rstrip('.')}" for name, reason in found.failed.items())
        count = len(found.failed) + len(found.results)
        raise InputError(f"{len(found.failed)} of {count} tasks could not be scored. {reasons}.")
    return 0


def _check_output(path: Path, args: "EvaluateArguments") -> None:
    """Fail before the scoring, not after it; nothing is written."""
    from sinkd_llm.runs.inputs import check_scores_file, model_inputs, task_inputs
    from sinkd_llm.tasks import load_task
    from sinkd_llm.tasks.registry import expand_tasks

    inputs = model_inputs("the model", args.model_name_or_path)
    names = expand_tasks(str(args.task))
    for name in names:
        with suppress(*[InputError] if len(names) > 1 else []):  # said when the others are scored
            inputs = [*inputs, *task_inputs(load_task(name), args.data_dir)]
    check_scores_file(path, inputs)


def _show(args: "EvaluateArguments", found: "Evaluations") -> None:
    from sinkd_llm.report.evaluation import MOST_CLASSES, classes_table, tasks_table
    from sinkd_llm.report.table import results_table
    from sinkd_llm.terminal import columns, show

    show("")
    several = len(found.results) + len(found.failed) > 1
    if several:
        rows = {result.task.name: result.row for result in found.results}
        metrics = {result.task.name: _primary_first(result) for result in found.results}
        show(tasks_table(rows, metrics, found.averages, columns()))
    for result in found.results:
        if result.calibration is not None:
            show(f"{result.task.name}: probabilities are calibrated, as the model's folder says")
        if several:
            continue
        show(results_table([result.row]))
        if result.row.classes is not None and len(result.row.classes.names) <= MOST_CLASSES:
            show("")
            show(classes_table(result.row.classes))
        show(f"{result.row.num_examples} {args.split} rows of {args.task}; in brackets 95 % intervals")


def _primary_first(result: "EvaluateResult") -> list[str]:
    """The task's own metrics that were computed."""
    own = [result.task.primary_metric, *result.task.metric_names]
    return [name for name in dict.fromkeys(own) if name in result.row.metrics]


def _scores(args: "EvaluateArguments", found: "Evaluations") -> str:
    """The JSON file: of one task its scores and predictions, of several a list of these."""
    from dataclasses import asdict

    from sinkd_llm.environment import versions
    from sinkd_llm.secrets import masked

    settings = {name: value for name, value in asdict(args).items() if name not in ("output", "with_text")}
    content: dict[str, Any]
    if len(found.results) + len(found.failed) == 1:
        content = {**settings, **_of_task(found.results[0]), "versions": versions()}
    else:
        content = {**settings, "averages": found.averages, "failed": found.failed, "versions": versions()}
        content["results"] = [{"task": result.task.name, **_of_task(result)} for result in found.results]
    try:
        return json.dumps(masked(content), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    except ValueError as error:
        raise InputError(
            f"a score of {args.model_name_or_path} is NaN or infinite and means nothing; nothing was written."
        ) from error


def _of_task(result: "EvaluateResult") -> dict[str, Any]:
    row, score = result.row, result.score
    predictions: list[dict[str, Any]] = [
        {"id": name, "prediction": prediction}
        for name, prediction in zip(result.rows["id"], score.predictions, strict=True)
    ]
    if score.numbers is not None:
        for entry, number in zip(predictions, score.numbers, strict=True):
            entry["number"] = number
    content = row.as_dict()
    for name in ("name", "trainable_parameters", "share_of_teacher"):
        del content[name]
    return {**content, "predictions": predictions}


def _lines(args: "EvaluateArguments", found: "Evaluations") -> str:
    """The JSON lines: a row a line."""
    return "".join(
        json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n"
        for result in found.results
        for line in _answers(result, bool(args.with_text))
    )


def _answers(result: "EvaluateResult", with_text: bool) -> list[dict[str, Any]]:
    """
    What is written of each row: `task`, `id`, `text`, `gold` and `choice`; where answers are ranked `probabilities`,
    by choice, and where a teacher is known `teacher_choice` and `teacher_probabilities`.
    """
    from sinkd_llm.report.predictions import rounded

    rows, score, teacher = result.rows, result.score, result.teacher
    ranked = "choices" in rows.column_names
    lines = []
    for place, row in enumerate(rows):
        line: dict[str, Any] = {"task": result.task.name, "id": row["id"]}
        if with_text:
            line["text"] = row["prompt"]
        if not ranked:
            lines.append({**line, "gold": row["completion"], "choice": score.predictions[place]})
            continue
        choices = [choice.strip() for choice in row["choices"]]
        line |= {"gold": choices[row["label"]], "choice": choices[score.predictions[place]]}
        if score.numbers is not None:
            line["number"] = score.numbers[place]
        for name, known in (
            ("probabilities", score.probabilities),
            ("teacher_probabilities", teacher.probabilities if teacher is not None else None),
        ):
            if known is not None:
                line[name] = dict(zip(choices, rounded([known[place]])[0], strict=True))
        if teacher is not None and teacher.predictions[place] >= 0:
            line["teacher_choice"] = choices[teacher.predictions[place]]
        lines.append(line)
    return lines
