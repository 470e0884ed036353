"""`sinkd quickstart`: a real model becomes a teacher, and a small encoder learns from it.

The settings are the two files in `sinkd_llm/recipes/`; this runs `sinkd finetune`, `sinkd cache` and `sinkd distill`
on them, one after the other.
"""

import argparse
import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sinkd_llm.cli.command_parser import CommandParser

if TYPE_CHECKING:
    from sinkd_llm.report.results import ResultRow

RECIPES = Path(__file__).resolve().parents[1] / "recipes"


def main(argv: Sequence[str]) -> int:
    """Fine-tune, distil, score, print the table and what to do next."""
    parser = CommandParser(
        prog="sinkd quickstart",
        description="Fine-tune SmolLM2-135M into a teacher on a small task that comes with the package, let it "
        "label statements, and distil it into three layers of MiniLM. Replaces an earlier quickstart.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--output_dir", default="runs/quickstart", help="where both models go")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same result")
    parser.add_argument("--max_steps", type=int, help="steps of each training, for a shorter look")
    parser.add_argument("--max_eval_samples", type=int, help="statements to score on, likewise")
    parser.add_argument("--max_unlabelled_samples", type=int, help="statements without a label, likewise")
    parser.add_argument("--model_name_or_path", default="smollm2-135m", help="what to start from")
    parser.add_argument("--student_layers", type=int, help="layers of the student (recipe: 3 of MiniLM's 6)")
    return run(parser.parse_args(list(argv)))


def run(args: argparse.Namespace) -> int:
    """The four steps of the quickstart."""
    from sinkd_llm.cli.parsing import parse_recipe, parse_training
    from sinkd_llm.cli.printing import show_run
    from sinkd_llm.runs import run_distill, run_finetune
    from sinkd_llm.runs.cache import run_cache
    from sinkd_llm.terminal import say

    started = time.monotonic()
    folder = Path(args.output_dir)
    common = ["--seed", str(args.seed), "--overwrite_output_dir"]
    if args.max_steps is not None:
        common += ["--max_steps", str(args.max_steps)]
    if args.max_eval_samples is not None:
        common += ["--max_eval_samples", str(args.max_eval_samples)]
    few = []
    if args.max_unlabelled_samples is not None:
        few = ["--max_unlabelled_samples", str(args.max_unlabelled_samples)]
    teacher = ["--config", str(RECIPES / "quickstart_teacher.yaml")]
    teacher += ["--output_dir", str(folder / "teacher"), *common]
    teacher += ["--model_name_or_path", args.model_name_or_path]
    student = ["--config", str(RECIPES / "quickstart_student.yaml")]
    student += ["--output_dir", str(folder / "student"), *common, *few]
    answers = ["--config", str(RECIPES / "quickstart_student.yaml"), "--output", str(folder / "answers")]
    answers += ["--teacher_model_name_or_path", str(folder / "teacher"), "--overwrite", "true", *few]
    if args.max_eval_samples is not None:
        answers += ["--max_eval_samples", str(args.max_eval_samples)]
    student += ["--teacher_cache", str(folder / "answers")]
    if args.student_layers is not None:
        student += ["--student_layers", str(args.student_layers)]
    finetune_arguments = parse_training("finetune", teacher)
    distill_arguments = parse_training("distill", student)

    cache_arguments = parse_recipe("cache", answers)
    layers = distill_arguments[1].student_layers
    say(
        f"[1/4] A teacher: {args.model_name_or_path} learns to say whether a statement of opinion is "
        "positive or negative (LoRA, cross-entropy)"
    )
    taught = run_finetune(*finetune_arguments, argv=teacher)
    say(f"      {_change(taught.rows[0], taught.rows[-1])}")
    say("[2/4] Its answers: the teacher says how likely both answers are, for statements with and without a label")
    task_args, training_args, model_args, cache_args = cache_arguments
    run_cache(task_args, training_args, model_args, cache_args, argv=answers)
    say(f"[3/4] A student: {layers} layers of an encoder with another tokenizer learn the answers (CE + KL)")
    result = run_distill(*distill_arguments, argv=student)
    say("[4/4] The result")
    show_run(result)
    _show_next(folder, time.monotonic() - started, few)
    return 0


def _change(before: "ResultRow", after: "ResultRow") -> str:
    name = str(after.primary_metric)
    return f"teacher: {name} {before.metrics[name]:.3f} before, {after.metrics[name]:.3f} after"


def _show_next(folder: Path, seconds: float, few: Sequence[str]) -> None:
    from sinkd_llm.report.results import REPORT_FILE
    from sinkd_llm.terminal import show
    from sinkd_llm.units import format_duration

    student = folder / "student"
    more = ["--config", str(RECIPES / "quickstart_student.yaml"), "--sinkhorn_weight", "0.8"]
    more += ["--teacher_cache", str(folder / "answers"), "--output_dir", str(folder / "sinkd"), *few]
    show(f"The quickstart took {format_duration(seconds)}. Look at {student / REPORT_FILE}, then:")
    show("")
    show("  the same with the Sinkhorn term:")
    show(f"    sinkd distill {shlex.join(more)}")
    show("  the student on rows of your choice:")
    evaluate = ["--model_name_or_path", str(student), "--task", "quickstart", "--split", "train"]
    show(f"    sinkd evaluate {shlex.join(evaluate)}")
