"""What a run computes with, put together once: for the trainer, the memory estimate and the cache writer."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from sinkd_llm.errors import InputError
from sinkd_llm.inputs.answer_choices import verbalizer_ids
from sinkd_llm.inputs.over_choices import choice_rows_for
from sinkd_llm.inputs.pair import rows_for
from sinkd_llm.inputs.reading import Reading
from sinkd_llm.models.adapters import add_adapter
from sinkd_llm.models.head_forms import head_to_fuse
from sinkd_llm.models.heads import HeadForm
from sinkd_llm.models.kinds import Kind, context_length, kind_of
from sinkd_llm.models.kinds.over_choices import OverChoices
from sinkd_llm.models.states import body_of, state_width
from sinkd_llm.teachers import Teacher
from sinkd_llm.training.config import SinKDConfig
from sinkd_llm.training.pair import Pair
from sinkd_llm.training.projection import StateTerms
from sinkd_llm.training.signal import why_rows_need_choices

if TYPE_CHECKING:
    from datasets import Dataset
    from peft import PeftConfig


@dataclass(frozen=True)
class Rows:
    """How a run reads its rows: `tokenize` makes features of them, `collate` batches of features."""

    reading: Reading
    tokenize: Any
    collate: Any


@dataclass(frozen=True)
class Prepared:
    """
    Student, teacher and rows of a run, ready to compute with.

    Attributes:
        student (`PreTrainedModel` or `PeftModel`): with its adapter.
        teacher ([`~sinkd_llm.teachers.Teacher`], *optional*): none for fine-tuning.
        tokenizer (`PreTrainedTokenizerBase`): of both.
        rows ([`Rows`]): how rows become batches.
        verbalizer_ids (`Tensor`, *optional*): the ids that SinKD is restricted to, where `vocabulary` asks for it.
        head ([`HeadForm`], *optional*): of the student, if the loss takes its head over.
        kind ([`Kind`]): what the student's rows are.
        states ([`StateTerms`], *optional*): what the terms of hidden states need, if the loss has them.
    """

    student: Any
    teacher: Teacher | None
    tokenizer: Any
    rows: Rows
    verbalizer_ids: Tensor | None
    head: HeadForm | None
    kind: Kind
    states: StateTerms | None = None


def prepare(
    pair: Pair,
    args: SinKDConfig,
    peft_config: "PeftConfig | None",
    train_dataset: "Dataset | None",
    zero_stage: int | None = None,
) -> Prepared:
    """
    Puts the adapter on the student, takes its dropout away if `args` say so, and decides how rows are read.

    Args:
        pair ([`Pair`]): loaded and checked to fit.
        args ([`SinKDConfig`]): the settings.
        peft_config (`PeftConfig`, *optional*): of the adapter.
        train_dataset (`Dataset`, *optional*): whose answer choices are the verbalizers.
        zero_stage (`int`, *optional*): DeepSpeed's stage for the student; `None` without DeepSpeed.

    Raises:
        InputError: for an adapter that would not train, rows that cannot be read, an objective that cannot be
            computed from what the teacher gives, and a head that the loss cannot take over where `fused` is `always`.
    """
    student = add_adapter(pair.student, peft_config, zero_stage)
    if args.disable_dropout:
        disable_dropout(student)
    if pair.over_choices:
        return _over_choices(pair, student, args, train_dataset)
    rows = read_rows(student, pair.teacher, pair.tokenizer, args)
    restricted: Tensor | None = None
    if pair.teacher is not None and args.vocabulary == "verbalizers" and train_dataset is not None:
        restricted = verbalizer_ids(train_dataset, rows.tokenize)
    if pair.teacher is not None:
        pair.teacher.check_objective(args.objective(), restricted, args.cache_tolerance)
    head = head_to_fuse(student, "student", args.fused)
    states = state_terms(student, pair.teacher, args)
    return Prepared(student, pair.teacher, pair.tokenizer, rows, restricted, head, kind_of(student), states)


def state_terms(student: Any, teacher: Teacher | None, args: SinKDConfig) -> StateTerms | None:
    """What the terms of hidden states need, if `args` have any and there is a teacher, whose model is here."""
    settings = args.objective().states
    if teacher is None or not settings.in_use:
        return None
    assert teacher.model is not None, "settings refuse a cache"
    for model in (student, teacher.model):
        body_of(model)  # which refuses a model without one
    return StateTerms(settings, state_width(student), state_width(teacher.model), args.seed)


def check_over_choices(args: SinKDConfig, reason: str | None = None) -> None:
    """
    Refuses settings that ask for what there is not where student and teacher are compared over the answer choices.

    Args:
        args ([`SinKDConfig`]): the settings.
        reason (`str`, *optional*): why the rows can be compared in no other way.

    Raises:
        InputError: for the first of them.
    """
    if args.fused == "always":
        raise InputError(
            "fused is always, but over the answer choices a model gives scores of choices, and no hidden states whose "
            "head the loss could take over; leave fused out."
        )
    if args.objective().states.in_use:
        way = "use a teacher with the student's tokenizer and head (signal tokens)"
        because = ""
        if reason is not None:
            because, way = f", because {reason}", "train on rows for which that does not hold"
        raise InputError(
            "hidden_weight or queue_weight is above 0, and student and teacher are compared over the answer choices"
            f"{because}: a prompt is then read in parts and beside its choices, and no hidden state is of the prompt "
            f"alone. Set both to 0, or {way}."
        )


def _over_choices(pair: Pair, student: Any, args: SinKDConfig, rows: "Dataset | None") -> Prepared:
    """As [`prepare`], where student and teacher are compared over the answer choices: no head is left to the loss."""
    assert pair.teacher is not None
    check_over_choices(args, why_rows_need_choices(rows))
    pair.teacher.check_objective(args.objective(), None, args.cache_tolerance)
    reading = Reading.of(args)
    tokenize, collate = choice_rows_for(
        student,
        pair.tokenizer,
        pair.teacher.model,
        pair.teacher_tokenizer,
        reading,
        pad_to_multiple_of=args.pad_to_multiple_of,
    )
    kind = OverChoices(kind_of(student), args.choice_normalisation)
    rows = Rows(tokenize.reading, tokenize, collate)
    return Prepared(student, pair.teacher, pair.tokenizer, rows, None, None, kind)


def read_rows(
    student: Any, teacher: Teacher | None, tokenizer: Any, args: SinKDConfig, over_choices: bool = False
) -> Rows:
    """
    How `student` and `teacher` read the rows of a run: within the context of both, each in the way of its kind.

    `over_choices`: all choices of each row, of one model alone.
    """
    if over_choices:
        tokenize, collate = choice_rows_for(student, tokenizer, None, None, Reading.of(args))
        return Rows(tokenize.reading, replace(tokenize, as_asked=True), collate)
    lengths = [context_length(student)] + ([teacher.context_length] if teacher is not None else [])
    reading = Reading.of(args).within(*lengths)
    other = teacher.model if teacher is not None else None
    return Rows(reading, *rows_for(student, other, tokenizer, reading, pad_to_multiple_of=args.pad_to_multiple_of))


def disable_dropout(model: nn.Module) -> None:
    """Sets every dropout probability to 0: of modules, and of layers that keep it as a number (attention, BART)."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if "drop" in name and isinstance(value, float):
                setattr(module, name, 0.0)


def enable_checkpointing(student: Any, args: SinKDConfig, zero_stage: int | None) -> None:
    """What gradient checkpointing needs of an adapted student, where `args` ask for it."""
    if not (args.gradient_checkpointing and hasattr(student, "peft_config")):
        return
    # The frozen embedding's output needs a gradient, or a checkpointed block has none to pass on.
    student.enable_input_require_grads()
    if zero_stage == 3:
        # Stage 3 releases a block's weights after its forward; only the reentrant kind asks for them again.
        args.gradient_checkpointing_kwargs = {
            **(args.gradient_checkpointing_kwargs or {}),  # type: ignore[dict-item]
            "use_reentrant": True,
        }
