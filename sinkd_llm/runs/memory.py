"""`sinkd env --estimate`: what a run would need, from its settings and its longest rows, without its weights."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from sinkd_llm.errors import InputError
from sinkd_llm.memory import (
    DeviceMemory,
    ModelSize,
    NotCountedError,
    StepMemory,
    device_memory,
    model_size,
    optimizer_bytes,
    trace_step,
)
from sinkd_llm.models.kinds import IGNORE_INDEX
from sinkd_llm.runs.arguments import TaskArguments
from sinkd_llm.runs.data import RunData, load_run_data
from sinkd_llm.runs.training import apply_model_arguments, check_distill, check_finetune

if TYPE_CHECKING:
    from datasets import Dataset
    from trl import ModelConfig

    from sinkd_llm.training.config import SinKDConfig
    from sinkd_llm.training.prepare import Rows

# Rows that may be the longest once they are tokens: those with the most characters.
_CANDIDATES = 512
_WITHOUT_LIMIT = 1024


@dataclass(frozen=True)
class MemoryEstimate:
    """
    The memory of a run, set-up by set-up.

    Attributes:
        command (`str`): `"finetune"` or `"distill"`.
        student, teacher ([`ModelSize`]): the two models; no teacher for fine-tuning, and where a cache stands for one
            that has no name.
        steps (`dict[bool, StepMemory]`): of one micro-batch, without and with gradient checkpointing.
        checkpointing (`bool`): whether the run asks for it.
        batch (`str`): the micro-batch that was counted, in words.
        teacher_sizes (`dict[str, ModelSize]`): what the teacher would be as `"float32"`, `"bfloat16"`, `"8bit"`,
            `"4bit"`.
        optimizer (`float`): bytes of its states for a trained parameter, see [`optimizer_bytes`].
        accumulation (`int`): micro-batches of an update.
        teacher_place (`str` or `None`): where the run has its teacher under DeepSpeed, or `"cache"`; `None`: the
            default.
    """

    command: str
    student: ModelSize
    teacher: ModelSize | None
    steps: dict[bool, StepMemory]
    checkpointing: bool
    batch: str
    teacher_sizes: dict[str, ModelSize]
    optimizer: float
    accumulation: int
    teacher_place: str | None

    def device(
        self,
        setup: str,
        devices: int,
        *,
        checkpointing: bool,
        teacher: ModelSize | None = None,
        place: str | None = None,
    ) -> DeviceMemory:
        """One device's memory; `teacher` and `place` in place of the run's own."""
        return device_memory(
            setup,
            devices,
            self.student,
            teacher or self.teacher,
            self.steps[checkpointing],
            teacher_place=place or (self.teacher_place if setup != "none" or self.teacher_place == "cache" else None),
            optimizer=self.optimizer,
            accumulation=self.accumulation,
        )


def estimate_memory(
    task_args: TaskArguments,
    training_args: "SinKDConfig",
    model_args: "ModelConfig",
    data: RunData | None = None,
    stand_in: str | None = None,
) -> MemoryEstimate:
    """
    Count what the run that these arguments describe would hold, on the meta device.

    Args:
        task_args, training_args, model_args: as in [`run_distill`] or, without a teacher, in [`run_finetune`].
        data ([`RunData`], *optional*): the rows, where they are loaded already.
        stand_in (`str`, *optional*): a model that stands for the teacher, where that is not trained yet: it is counted
            as if it were trained from this model on these rows.

    Raises:
        InputError: for settings that contradict each other, and for models whose configuration or tokenizer cannot
            be read.
        NotCountedError: for a run whose memory is not known before it has begun.
    """
    import torch

    from sinkd_llm.inputs.answer_choices import class_names
    from sinkd_llm.inputs.pair import PairTokenizer
    from sinkd_llm.models import load_tokenizer
    from sinkd_llm.models.adapters import adapter_config
    from sinkd_llm.models.blueprint import blueprint
    from sinkd_llm.models.kinds import kind_of
    from sinkd_llm.models.probes import check_packing
    from sinkd_llm.objectives import GROUP
    from sinkd_llm.teachers import LocalTeacher
    from sinkd_llm.training.pair import Pair, load_student, predicts_numbers
    from sinkd_llm.training.prepare import prepare
    from sinkd_llm.training.signal import why_rows_need_choices

    teacher_name = stand_in or training_args.teacher_model_name_or_path
    cached = training_args.teacher_cache is not None
    (check_distill if training_args.has_teacher else check_finetune)(training_args, model_args)
    if training_args.signal == "choices" or {"teacher_file", "teacher_url"} & {*training_args.named_teachers}:
        raise NotCountedError(
            "The estimate counts what tokens take, and this run compares answer choices, which take another step; "
            "start it with --max_steps 2 and read its peak memory instead."
        )
    unnamed = cached and teacher_name is None
    if unnamed:
        teacher_name = model_args.model_name_or_path  # stands for logits over the same vocabulary; it is not loaded
    apply_model_arguments(training_args, model_args)
    try:
        data = data or load_run_data(task_args, training_args.sample_seed)
        rows: Dataset | None = data.train
    except InputError as error:
        rows, missing = None, str(error)
    if training_args.has_teacher and rows is not None and (reason := why_rows_need_choices(rows)) is not None:
        raise NotCountedError(
            f"The answer choices are compared, because {reason}, and the estimate counts what tokens take; start the "
            "run with --max_steps 2 and read its peak memory instead."
        )

    trust = training_args.trust_remote_code
    classes = class_names(rows) if rows is not None else None
    teacher = None
    if teacher_name is not None:
        options: dict[str, Any] = dict(training_args.teacher_model_init_kwargs or {})  # type: ignore[arg-type]
        defaults = {"revision": training_args.teacher_model_revision, "trust_remote_code": trust}
        defaults |= {} if stand_in is None else {"labels": classes}
        teacher = blueprint(teacher_name, **{**defaults, **options})
    student = load_student(model_args.model_name_or_path, teacher, training_args, None, classes, load=blueprint)
    tokenizer = load_tokenizer(model_args.model_name_or_path or str(teacher_name), trust_remote_code=trust)
    if teacher is not None and kind_of(teacher).scores_classes != kind_of(student).scores_classes:
        raise NotCountedError(
            f"The teacher is {kind_of(teacher).title} and the student {kind_of(student).title}, so that answer "
            "choices are compared, which the estimate does not count; start the run with --max_steps 2 and read its "
            "peak memory instead."
        )
    if teacher is not None:
        predicts_numbers(student, training_args)
    pair = Pair(student, LocalTeacher(teacher) if teacher is not None else None, tokenizer)
    prepared = prepare(pair, training_args, adapter_config(model_args), rows)
    student = prepared.student
    if training_args.packing:
        check_packing(student, "the student", torch.float32)
        if teacher is not None and not isinstance(prepared.rows.tokenize, PairTokenizer):
            check_packing(teacher, "the teacher", torch.float32)
    rows_in_words, batch = _largest_batch(prepared.rows, tokenizer, rows, training_args)
    if rows is None:
        rows_in_words += f" (the data could not be read: {missing})"
    ids = prepared.verbalizer_ids
    if ids is None and pair.teacher is not None and training_args.vocabulary == "verbalizers":
        ids = torch.arange(2)
    objective = training_args.objective()
    if objective.transport_scope == GROUP:  # whose rows are at most a batch
        objective = replace(objective, transport_scope="batch", transport_group_size=None)
    autocast = torch.bfloat16 if training_args.bf16 else torch.float16 if training_args.fp16 else None
    steps = {
        checkpointing: trace_step(
            student,
            pair.teacher,
            objective,
            batch,
            verbalizer_ids=ids,
            head=prepared.head,
            states=prepared.states,
            gradient_checkpointing=checkpointing,
            autocast=autocast,
        )
        for checkpointing in (False, True)
    }
    packed = training_args.teacher_quantised or "none"
    sizes = {}
    if teacher is not None and not unnamed:
        sizes = {"float32": model_size(teacher, bytes_each=4), "bfloat16": model_size(teacher, bytes_each=2)}
        sizes |= {form: model_size(teacher, form, bytes_each=2) for form in ("8bit", "4bit")}
    return MemoryEstimate(
        command="distill" if teacher is not None else "finetune",
        student=model_size(student, _quantisation(model_args), nested=model_args.use_bnb_nested_quant),
        teacher=None if teacher is None or unnamed else model_size(teacher, packed),
        steps=steps,
        checkpointing=bool(training_args.gradient_checkpointing),
        batch=rows_in_words,
        teacher_sizes=sizes,
        optimizer=optimizer_bytes(str(getattr(training_args.optim, "value", training_args.optim))),
        accumulation=training_args.gradient_accumulation_steps,
        teacher_place=_teacher_place(training_args, packed),
    )


def _teacher_place(training_args: "SinKDConfig", packed: str) -> str | None:
    if training_args.teacher_cache is not None:
        return "cache"
    if packed != "none":
        return "replicate"  # packed weights cannot be partitioned
    return None if training_args.teacher_deepspeed == "auto" else training_args.teacher_deepspeed


def _quantisation(model_args: "ModelConfig") -> str:
    return "4bit" if model_args.load_in_4bit else "8bit" if model_args.load_in_8bit else "none"


def _largest_batch(
    read: "Rows", tokenizer: Any, rows: "Dataset | None", args: "SinKDConfig"
) -> tuple[str, Mapping[str, Any]]:
    """The micro-batch of the longest rows, in words and as the collator makes it."""
    from sinkd_llm.inputs.decoder_only import PackingCollator
    from sinkd_llm.models.kinds import TEACHER

    size = args.per_device_train_batch_size
    collate = PackingCollator(read.collate) if args.packing else read.collate
    if rows is None:
        filler = tokenizer.mask_token_id if tokenizer.mask_token_id is not None else 0
        row: dict[str, Any] = {"example_id": "row", "answer_ids": [0]}
        row["prompt_ids"] = [filler] * ((read.reading.max_length or _WITHOUT_LIMIT) - 1)
        batch = collate([{**row, TEACHER: row}] * size)
        return f"{size} rows of max_length{_size(batch)}", batch
    features = read.tokenize.features(_longest_texts(rows, max(_CANDIDATES, size)))
    features.sort(key=lambda row: len(row["prompt_ids"]) + len(row["answer_ids"]), reverse=True)
    batch = collate((features * size)[:size])
    return f"the {size} longest of {len(rows)} rows{_size(batch)}", batch


def _size(batch: Mapping[str, Any]) -> str:
    rows, length = batch["input_ids"].shape
    labels = batch["labels"]
    supervised = int((labels != IGNORE_INDEX).sum()) if labels.ndim == 2 else len(labels)
    return f", {rows} × {length} tokens, {supervised} supervised"


def _longest_texts(rows: "Dataset", count: int) -> "list[dict[str, Any]]":
    columns = [rows[name][:] for name in ("prompt", "completion")]
    lengths = [len(str(prompt)) + len(str(answer)) for prompt, answer in zip(*columns, strict=True)]
    longest = sorted(range(len(rows)), key=lengths.__getitem__, reverse=True)[:count]
    return list(rows.select(longest).to_list())
