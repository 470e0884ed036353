"""`finetune` and `distill`: load, score, train, save, score again, report."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from sinkd_llm.errors import InputError, SettingError
from sinkd_llm.interrupts import Interrupted, termination_raises
from sinkd_llm.library_errors import naming_settings
from sinkd_llm.report.results import AFTER, BEFORE, METRICS_FILE, TEACHER, ResultRow
from sinkd_llm.runs.arguments import TaskArguments
from sinkd_llm.runs.asking import check_asked, use_answers
from sinkd_llm.runs.data import RunData, load_run_data
from sinkd_llm.runs.examining import examine_model
from sinkd_llm.runs.failures import explained
from sinkd_llm.runs.folder import (
    RunFolder,
    check_output_dir,
    is_in,
    no_empty_folder,
    run_folder,
    source_size_bytes,
    weights_size_bytes,
)
from sinkd_llm.runs.inputs import run_inputs
from sinkd_llm.runs.predicting import predictions_of
from sinkd_llm.runs.record import write_records
from sinkd_llm.runs.scorer import Scorer
from sinkd_llm.secrets import masked_command
from sinkd_llm.terminal import is_main_process, say
from sinkd_llm.training.checkpoints import find_checkpoint
from sinkd_llm.training.settings.checks import check_settings
from sinkd_llm.training.settings.combinations import check_best_metric, check_revision

if TYPE_CHECKING:
    from trl import ModelConfig

    from sinkd_llm.training.config import SinKDConfig
    from sinkd_llm.training.trainer import SinKDTrainer


class TrainingInterrupted(Interrupted):
    """Training was stopped by Ctrl-C or SIGTERM after its checkpoint was saved."""


@dataclass
class RunResult:
    """What a training run gives: rows of the results table, and where everything is."""

    command: str
    output_dir: Path
    rows: list[ResultRow]
    training: dict[str, float]


def run_finetune(
    task_args: TaskArguments,
    training_args: "SinKDConfig",
    model_args: "ModelConfig",
    argv: Sequence[str] | None = None,
) -> RunResult:
    """
    Fine-tune a model with cross-entropy on the answers, score it before and after, save and report.

    Args:
        task_args ([`TaskArguments`]): what to train on.
        training_args ([`SinKDConfig`]): how.
        model_args ([`~trl.ModelConfig`]): what; `model_name_or_path` is required.
        argv (`Sequence[str]`, *optional*): the flags this came from, for the record.

    Raises:
        InputError: for settings that contradict each other, and for tasks, rows, models and folders that do not fit
            the run.
        TrainingInterrupted: after Ctrl-C or SIGTERM, when the checkpoint is saved.
    """
    check_finetune(training_args, model_args, task_args)
    return _train("finetune", task_args, training_args, model_args, argv)


def run_distill(
    task_args: TaskArguments,
    training_args: "SinKDConfig",
    model_args: "ModelConfig",
    argv: Sequence[str] | None = None,
) -> RunResult:
    """
    Train a student to follow a teacher; score the teacher, and the student before and after.

    Arguments and errors are the same as in [`run_finetune`]; `training_args.teacher_model_name_or_path` or
    `training_args.teacher_cache` is required, and `model_args.model_name_or_path` or `training_args.student_layers`.
    """
    check_distill(training_args, model_args)
    return _train("distill", task_args, training_args, model_args, argv)


def check_finetune(
    training_args: "SinKDConfig", model_args: "ModelConfig", task_args: TaskArguments | None = None
) -> None:
    """Refuses what [`run_finetune`] cannot do, before anything is loaded."""
    if training_args.has_teacher:
        raise InputError("finetune takes no teacher; use 'sinkd distill' to train with one.")
    names = ("unlabelled_file", "dataset_unlabelled_split", "allow_unlabelled", "labels_per_class")
    given = [name for name in names if task_args is not None and getattr(task_args, name)]
    if given and not (task_args is not None and task_args.labelled_rows_only):
        raise InputError(
            "finetune learns from labels alone; rows without labels need a teacher: use 'sinkd distill', leave out "
            f"{' and '.join(given)}, or set labelled_rows_only."
        )
    if model_args.model_name_or_path is None:
        raise InputError("--model_name_or_path is missing: the model to fine-tune.")
    _check_quantised(model_args)


def check_distill(training_args: "SinKDConfig", model_args: "ModelConfig") -> None:
    """Refuses what [`run_distill`] cannot do, before anything is loaded."""
    if not training_args.has_teacher:
        raise InputError(
            "--teacher_model_name_or_path is missing: the model to learn from; or give a --teacher_url, a "
            "--teacher_file, or the --teacher_cache that 'sinkd cache' wrote."
        )
    if model_args.model_name_or_path is None:
        if training_args.teacher_model_name_or_path is None:
            raise InputError(
                "there is no student: give --model_name_or_path, or, with a cache, the "
                "--teacher_model_name_or_path to cut it from."
            )
        if training_args.student_layers is None:
            raise InputError(
                "there is no student: give --model_name_or_path, or --student_layers to build one from "
                "the teacher's own layers."
            )
        if model_args.load_in_4bit or model_args.load_in_8bit:
            raise InputError(
                "--load_in_4bit and --load_in_8bit quantise a student that --model_name_or_path names; "
                "a student built from the teacher's layers is not quantised. For the teacher there are "
                "--teacher_load_in_4bit and --teacher_load_in_8bit."
            )
    _check_quantised(model_args)


def _check_quantised(model_args: "ModelConfig") -> None:
    if (model_args.load_in_4bit or model_args.load_in_8bit) and not model_args.use_peft:
        raise InputError("quantised weights cannot be trained themselves; add --use_peft.")


@dataclass(frozen=True)
class PreparedRun:
    """
    What a training run will do, checked as far as that goes without a model in memory.

    Attributes:
        command (`str`): `"finetune"` or `"distill"`.
        output_dir (`Path`): a folder that the run may have.
        checkpoint (`Path`, *optional*): a whole one, to go on from.
        data ([`RunData`]): the rows.
        resume (`str`): the command line that goes on from the run's last checkpoint.
    """

    command: str
    output_dir: Path
    checkpoint: Path | None
    data: RunData
    resume: str

    @property
    def continuing(self) -> bool:
        """Whether the run goes on from a checkpoint of its own folder."""
        return is_in(self.checkpoint, self.output_dir)


def prepare_run(
    command: str,
    task_args: TaskArguments,
    training_args: "SinKDConfig",
    model_args: "ModelConfig",
    argv: Sequence[str] | None = None,
) -> PreparedRun:
    """
    Resolve and check paths, checkpoint, models' folders and rows of a run. Nothing is written or deleted.

    Arguments are the same as in [`run_finetune`].

    Raises:
        InputError: for the first thing that is wrong.
    """
    if not str(training_args.output_dir or "").strip():
        raise InputError("--output_dir is empty; give the folder that the model is to be written to.")
    for arguments in (task_args, model_args):
        check_settings(arguments)
    check_revision("model_revision", model_args.model_revision, model_args.model_name_or_path)
    output_dir = Path(str(training_args.output_dir))
    checkpoint = find_checkpoint(training_args.resume_from_checkpoint, output_dir)
    if is_main_process():  # the others would find what it has begun
        elsewhere = None if is_in(checkpoint, output_dir) else checkpoint
        inputs = run_inputs(task_args, training_args, model_args, checkpoint=elsewhere, argv=argv)
        check_output_dir(output_dir, overwrite=task_args.overwrite_output_dir, checkpoint=checkpoint, inputs=inputs)
    keep = [] if training_args.group_column is None else [training_args.group_column]
    data = load_run_data(task_args, training_args.sample_seed, keep)
    if data.evaluation is None and training_args.eval_strategy != "no":
        raise InputError(
            f"eval_strategy is {training_args.eval_strategy!s}, but {data.name} has no split "
            f"{task_args.dataset_test_split!r} to evaluate on; set eval_strategy to no, or validation_share to 0.1."
        )
    if data.evaluation is None and training_args.eval_on_start:
        raise InputError(f"eval_on_start is set, but {data.name} has no rows to evaluate on; leave it out.")
    if training_args.metric_for_best_model is not None:
        check_best_metric(training_args, _metrics_of_an_evaluation(data, training_args))
    return PreparedRun(command, output_dir, checkpoint, data, resume_command(command, argv))


def _metrics_of_an_evaluation(data: RunData, training_args: "SinKDConfig") -> list[str]:
    """What an evaluation during training gives beside the loss, the primary metric first; it generates no answers."""
    if data.evaluation is None or "choices" not in data.evaluation.column_names:
        return []
    names = dict.fromkeys((data.task.primary_metric, *data.task.metric_names) if data.task else ("acc",))
    if training_args.teacher_cache is None:
        chooses = training_args.teacher_model_name_or_path is not None
    else:
        from sinkd_llm.teachers.cache.manifest import Manifest

        cache = Manifest.load(Path(training_args.teacher_cache).expanduser())
        # Whether they are of these rows is known when a tokenizer is.
        chooses = bool(cache.teacher_score and cache.teacher_score.get("keys"))
        if _by_agreement(training_args) and not chooses:
            _refuse_agreement(cache.teacher_score)
    return [*names, *(["agreement"] if chooses else [])]


def _by_agreement(training_args: "SinKDConfig") -> bool:
    return training_args.metric_for_best_model in ("agreement", "eval_agreement")


def _refuse_agreement(score: dict[str, Any] | None) -> NoReturn:
    from sinkd_llm.teachers.choices import why_unknown

    raise SettingError("metric_for_best_model", f"is 'agreement', which is not known here. {why_unknown(score)}")


@termination_raises()
def _train(
    command: str,
    task_args: TaskArguments,
    training_args: "SinKDConfig",
    model_args: "ModelConfig",
    argv: Sequence[str] | None,
) -> RunResult:
    run = prepare_run(command, task_args, training_args, model_args, argv)
    if command == "distill":
        use_answers(run.data, training_args)
    with no_empty_folder(run.output_dir) if is_main_process() else nullcontext():
        trainer = load_trainer(run, training_args, model_args)
        # One process holds the folder for all of a launch; the others wait until it is theirs.
        holds = run_folder(run.output_dir, overwrite=task_args.overwrite_output_dir, continuing=run.continuing)
        with holds if is_main_process() else nullcontext() as folder:
            trainer.accelerator.wait_for_everyone()
            return _act(run, trainer, folder, (task_args, training_args, model_args), argv)


def load_trainer(run: PreparedRun, training_args: "SinKDConfig", model_args: "ModelConfig") -> "SinKDTrainer":
    """Models, tokenizer and rows of a run, loaded and checked to fit each other and the checkpoint."""
    from transformers import set_seed
    from transformers.trainer_callback import PrinterCallback, ProgressCallback

    from sinkd_llm.evaluation import ranking_metrics
    from sinkd_llm.models.adapters import adapter_config
    from sinkd_llm.models.quantisation import build_quantization_config
    from sinkd_llm.training.trainer import SinKDTrainer

    if training_args.device.type == "cpu":
        training_args.dataloader_pin_memory = False  # pinning is for copies to a GPU; torch would warn
    set_seed(training_args.seed)  # before the adapter: its matrices start at random
    apply_model_arguments(training_args, model_args)
    teacher_name = training_args.teacher_model_name_or_path
    cached = training_args.teacher_cache is not None
    needed = (None if cached and model_args.model_name_or_path else teacher_name, model_args.model_name_or_path)
    say(f"Loading {' and '.join(filter(None, needed))} …")
    data = run.data
    ranks = data.evaluation is not None and "choices" in data.evaluation.column_names
    if cached:
        check_asked(data, str(training_args.teacher_cache))
    with naming_settings(training_args, model_args):
        trainer = SinKDTrainer(
            model=model_args.model_name_or_path,
            args=training_args,
            train_dataset=data.train,
            eval_dataset=data.evaluation,
            compute_metrics=ranking_metrics(data.task, data.evaluation) if data.task is not None and ranks else None,
            quantization_config=build_quantization_config(model_args),
            peft_config=adapter_config(model_args),
        )
    for default in (ProgressCallback, PrinterCallback):
        trainer.remove_callback(default)
    if run.checkpoint is not None:
        trainer.check_checkpoint(run.checkpoint)
    if cached and _by_agreement(training_args) and trainer.teacher is not None:
        scorer = Scorer(data, trainer.processing_class, trainer.args, trainer)
        scorer.recorded(trainer.teacher.recorded_score)
        if -1 in (scorer.recorded_choices(trainer.model) or ()):
            _refuse_agreement(trainer.teacher.recorded_score)
    return trainer


def _act(
    run: PreparedRun,
    trainer: "SinKDTrainer",
    folder: RunFolder | None,
    arguments: "tuple[TaskArguments, SinKDConfig, ModelConfig]",
    argv: Sequence[str] | None,
) -> RunResult:
    """Score, train, save, score again, and write the records."""
    from sinkd_llm.training.callbacks import InterruptCallback, MetricsFileCallback, RichProgressCallback

    output_dir, checkpoint, data = run.output_dir, run.checkpoint, run.data
    interrupt = InterruptCallback(run.resume, save=trainer.save_checkpoint)
    bar = RichProgressCallback()
    for callback in (bar, MetricsFileCallback(output_dir / METRICS_FILE), interrupt):
        trainer.add_callback(callback)
    teacher_name = arguments[1].teacher_model_name_or_path
    names = (BEFORE, AFTER) if run.command == "distill" else ("before", "after")
    scorer = Scorer(data, trainer.processing_class, trainer.args, trainer)
    rows = []
    if trainer.teacher is not None and trainer.teacher.model is not None:
        size = source_size_bytes(str(teacher_name))
        rows.append(scorer.row(TEACHER, trainer.teacher.model, size, profiled=arguments[0].profile))
        examine_model(data, trainer, scorer, arguments[0].teacher_examined_rows)
    elif trainer.teacher is not None and (recorded := scorer.recorded(trainer.teacher.recorded_score)) is not None:
        rows.append(recorded)
    if arguments[0].score_before:
        rows.append(scorer.row(names[0], trainer.model))

    begins = f", from {checkpoint.name}" if checkpoint is not None else ""
    say(f"Training on {len(data.train)} rows{begins} (Ctrl-C saves and stops) …")
    try:
        with explained(output_dir, run.resume):
            output = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    finally:
        bar.close()
        interrupt.restore()
    if interrupt.interrupted:
        trainer.accelerator.wait_for_everyone()  # a launcher ends all processes when the first one leaves
        raise TrainingInterrupted("training was stopped; nothing is lost", interrupt.exit_code)
    if folder is not None:
        folder.set_aside(checkpoints=False)  # the model of a finished run that was gone on from
    with explained(output_dir, run.resume, saving=True):
        trainer.save_whole(str(output_dir))
    if folder is not None:
        folder.model_is_whole = True
    rows.append(scorer.row(names[1], trainer.model, weights_size_bytes(output_dir), profiled=arguments[0].profile))
    answers = predictions_of(scorer, names[1], trainer.model)
    training = {
        "steps": output.global_step,
        "resumed_at": int(trainer.resumed_at),
        "seconds": output.metrics.get("train_runtime", 0.0),
        "loss": output.training_loss,
        "loss_from_step": int(trainer.loss_from_step),
    }
    if is_main_process():
        with explained(output_dir, run.resume):
            write_records(output_dir, run.command, argv, data, rows, answers, training, arguments, trainer)
    if trainer.args.push_to_hub:
        trainer.send()
    return RunResult(run.command, output_dir, rows, training)


def resume_command(command: str, argv: Sequence[str] | None) -> str:
    """The command line that goes on from the last checkpoint of the run that `argv` started."""
    if argv is None:
        return "the same call with resume_from_checkpoint='true'"
    kept, skip = [], False
    for word in argv:
        name = word.split("=")[0].replace("-", "_")
        if name in ("__resume_from_checkpoint", "__overwrite_output_dir"):
            skip = "=" not in word
        elif skip and not word.startswith("--"):
            skip = False
        else:
            kept.append(word)
            skip = False
    return masked_command(["sinkd", command, *kept, "--resume_from_checkpoint", "true"])


def apply_model_arguments(training_args: "SinKDConfig", model_args: "ModelConfig") -> None:
    """TRL's ModelConfig says how the student is loaded, and the teacher unless its own arguments do."""
    shared = {"dtype": model_args.dtype, "attn_implementation": model_args.attn_implementation}
    if model_args.model_name_or_path is not None:
        training_args.model_init_kwargs = {
            "revision": model_args.model_revision,
            **shared,
            **(training_args.model_init_kwargs or {}),  # type: ignore[dict-item]
        }
    if training_args.teacher_model_name_or_path is not None:
        training_args.teacher_model_init_kwargs = {
            **shared,
            **(training_args.teacher_model_init_kwargs or {}),  # type: ignore[dict-item]
        }
