"""`sinkd evaluate`: score a model on a task."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sinkd_llm.errors import InputError

if TYPE_CHECKING:
    from sinkd_llm.runs import EvaluateResult
    from sinkd_llm.runs.arguments import EvaluateArguments


def main(argv: Sequence[str]) -> int:
    """Parse `argv`, score, print the table, write `--output`."""
    from sinkd_llm.cli.flag_table import check_names

    check_names("evaluate", argv)
    from trl import ModelConfig

    from sinkd_llm.cli.parsing import parse_evaluation
    from sinkd_llm.files import write_whole
    from sinkd_llm.models import build_quantization_config
    from sinkd_llm.report.table import results_table
    from sinkd_llm.runs import run_evaluate
    from sinkd_llm.runs.inputs import user_path
    from sinkd_llm.secrets import masked
    from sinkd_llm.terminal import show

    args = parse_evaluation(argv)
    output = user_path("--output", args.output) if args.output is not None else None
    if output is not None:
        _check_output(output, args)
    result = run_evaluate(
        str(args.model_name_or_path),
        str(args.task),
        data_dir=args.data_dir,
        split=args.split,
        max_eval_samples=args.max_eval_samples,
        batch_size=args.batch_size,
        max_length=args.max_length,
        apply_chat_template=args.apply_chat_template,
        add_eos=args.add_eos,
        kind=args.model_kind,
        revision=args.model_revision,
        dtype=args.dtype,
        attn_implementation=args.attn_implementation,
        trust_remote_code=args.trust_remote_code,
        quantization_config=build_quantization_config(
            ModelConfig(dtype=args.dtype, load_in_4bit=args.load_in_4bit, load_in_8bit=args.load_in_8bit)
        ),
    )
    show("")
    show(results_table([result.row]))
    show(f"{result.row.num_examples} {args.split} rows of {args.task}")
    if output is not None:
        try:
            text = json.dumps(masked(_as_json(args, result)), indent=2, ensure_ascii=False, allow_nan=False)
        except ValueError as error:
            raise InputError(
                f"a score of {args.model_name_or_path} is NaN or infinite and means nothing; nothing was written."
            ) from error
        output.parent.mkdir(parents=True, exist_ok=True)
        write_whole(output, text + "\n")
        show(f"Scores and predictions are in {args.output}")
    return 0


def _check_output(path: Path, args: "EvaluateArguments") -> None:
    """Fail before the scoring, not after it; nothing is written."""
    from sinkd_llm.runs.inputs import check_scores_file, model_inputs, task_inputs
    from sinkd_llm.tasks import load_task

    inputs = model_inputs("the model", args.model_name_or_path)
    check_scores_file(path, [*inputs, *task_inputs(load_task(str(args.task)), args.data_dir)])


def _as_json(args: "EvaluateArguments", result: "EvaluateResult") -> dict[str, Any]:
    from dataclasses import asdict

    from sinkd_llm.environment import versions

    row, score = result.row, result.score
    predictions = [
        {"id": name, "prediction": prediction} for name, prediction in zip(result.ids, score.predictions, strict=True)
    ]
    if score.numbers is not None:
        for entry, number in zip(predictions, score.numbers, strict=True):
            entry["number"] = number
    return {
        **{name: value for name, value in asdict(args).items() if name != "output"},
        "metrics": row.metrics,
        "num_examples": row.num_examples,
        "seconds": row.seconds,
        "parameters": row.parameters,
        "size_bytes": row.size_bytes,
        "versions": versions(),
        "predictions": predictions,
    }
