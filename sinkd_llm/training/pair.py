"""Student and teacher of a run: loaded, and checked to fit."""

import contextlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from sinkd_llm.errors import InputError
from sinkd_llm.inputs.reading import Reading
from sinkd_llm.models.kinds import kind_of, output_size
from sinkd_llm.models.kinds.class_heads import class_order, class_words, is_new_head, name_classes, same_words
from sinkd_llm.models.kinds.experts import warn_of_router
from sinkd_llm.models.loading import load_model
from sinkd_llm.models.origin import name_of, origin_of
from sinkd_llm.models.pair_checks import check_apart, check_has_weights
from sinkd_llm.models.partitioning import is_partitioned, whole_weights
from sinkd_llm.models.probes import check_reading, float_dtypes
from sinkd_llm.models.quantisation import build_quantization_config
from sinkd_llm.models.tokenizers import load_tokenizer
from sinkd_llm.models.wrappers import unwrap
from sinkd_llm.objectives.transported import NEEDS_DISTRIBUTIONS
from sinkd_llm.teachers import CachedTeacher, LocalTeacher, Teacher, resolve_placement
from sinkd_llm.training.config import SinKDConfig
from sinkd_llm.training.layer_selection import cut_student
from sinkd_llm.training.signal import FoundSignal, signal_for, signal_of_cache

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pair:
    """
    Student and teacher of a run; no teacher for fine-tuning.

    Attributes:
        student (`PreTrainedModel` or `PeftModel`): the student.
        teacher ([`~sinkd_llm.teachers.Teacher`], *optional*): the teacher.
        tokenizer (`PreTrainedTokenizerBase`): the student's, and the teacher's unless it has one of its own.
        over_choices (`bool`): they are compared over the answer choices of a row, and not over tokens or classes.
        teacher_tokenizer (`PreTrainedTokenizerBase`, *optional*): the teacher's own, over answer choices.
    """

    student: Any
    teacher: Teacher | None
    tokenizer: Any
    over_choices: bool = False
    teacher_tokenizer: Any = None


def load_pair(
    model: Any,
    teacher_model: Any,
    args: SinKDConfig,
    tokenizers: tuple[Any, Any],
    quantization_config: Any,
    classes: Sequence[str] | None,
    rows: Any = None,
) -> Pair:
    """
    What a trainer was given, loaded and checked to fit together.

    Args:
        model, teacher_model, args, quantization_config: as in the trainer.
        tokenizers (`tuple`): the run's and the teacher's own, each `None` where it was not given.
        classes (`Sequence[str]`, *optional*): what a new classification head of the student would learn.
        rows ([`~datasets.Dataset`], *optional*): to train on; they decide whether `signal` can be what it is.
    """
    if args.teacher_cache is None and (args.teacher_file is not None or args.teacher_url is not None):
        raise InputError(
            "A trainer asks no server and reads no file of answers: write their answers with `sinkd cache` or "
            "`sinkd_llm.runs.asking.cache_answers`, and give the folder as teacher_cache."
        )
    cached = open_cache(args, model, teacher_model)
    teacher: Teacher | None = cached
    # With a cache the teacher is loaded only for the student to be cut from it.
    loaded = load_teacher(teacher_model, args, cut=model is None) if teacher is None or model is None else None
    tokenizer, own_tokenizer = tokenizers
    if tokenizer is None:
        tokenizer = default_tokenizer(model, loaded, args)
    if args.signal == "tokens" and teacher is not None and not teacher.scores_classes:
        classes = None  # as beside a model that scores words
    names = teacher.classes if teacher is not None else None
    seen = tokenizer, rows
    student = load_student(model, loaded, args, quantization_config, classes, teacher_classes=names, seen=seen)
    for role, given in (("The teacher", loaded), ("The student", student)):
        if given is not None:
            check_has_weights(given, role)
            # load_model has asked its own, but not in what the run computes.
            if origin_of(unwrap(given)) is None or len(float_dtypes(given)) > 1:
                check_reading(given, role, _precision(args))
    warn_of_router(unwrap(student))
    if teacher is None and loaded is not None:
        check_apart(loaded, student)
        name = teacher_model if isinstance(teacher_model, str) else args.teacher_model_name_or_path
        signal = signal_for(args, student, loaded, name, (tokenizer, own_tokenizer), rows)
        over_choices = args.choice_normalisation if signal.over_choices else None
        teacher = LocalTeacher(loaded, name, args.trust_remote_code, choices=over_choices)
    elif cached is not None:
        signal = signal_of_cache(args, cached, rows)
    else:
        signal = FoundSignal(False)
    if teacher is not None:
        check_regression(student, args)
        teacher.check_fits(student, tokenizer, asdict(Reading.of(args)), classes)
    return Pair(student, teacher, tokenizer, signal.over_choices, signal.teacher_tokenizer)


def _precision(args: SinKDConfig) -> torch.dtype:
    """What the run computes in: the dtype of its autocast, else float32."""
    return torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else torch.float32


def predicts_numbers(student: Any, args: SinKDConfig) -> bool:
    """
    Whether a student has one output, for numbers.

    Raises:
        InputError: for such a student and a term that numbers do not have.
    """
    if not (kind_of(student).scores_classes and output_size(student) == 1):
        return False
    if args.transported_weight > 0:
        raise InputError(NEEDS_DISTRIBUTIONS)
    return True


def check_regression(student: Any, args: SinKDConfig) -> None:
    """
    Warns where SinKD would drown the squared errors of a regression. On STS-B the default weight was harmful, an
    eighth of it hardly (docs/log.md, 2026-11-24).

    Raises:
        InputError: as [`predicts_numbers`].
    """
    if predicts_numbers(student, args) and args.sinkhorn_weight > 0.1 and args.cost_norm == "l1":
        logger.warning(
            "The student predicts numbers, where sinkhorn_weight %g with an L1 cost outweighs the squared errors, "
            "which alone know which row is which; try sinkhorn_weight 0.1 or 0, or cost_norm sql2 (docs/method.md).",
            args.sinkhorn_weight,
        )


def load_teacher(teacher: str | PreTrainedModel | None, args: SinKDConfig, cut: bool = False) -> Any:
    """
    The teacher that `teacher` or `args` names, or `None`.

    Under DeepSpeed's stage 3 one that will be sharded is partitioned while it is loaded, so that no process ever
    holds it whole; unless it is quantised, or the student will be `cut` from its layers.
    """
    if teacher is not None and args.teacher_model_name_or_path is not None:
        raise InputError(
            "A teacher was given both as `teacher_model` and as `args.teacher_model_name_or_path`; give one."
        )
    teacher = teacher if teacher is not None else args.teacher_model_name_or_path
    quantised = args.teacher_quantised is not None
    if not isinstance(teacher, str):
        if args.teacher_model_init_kwargs or quantised:
            raise InputError(
                "`teacher_model_init_kwargs` and `teacher_load_in_4bit`/`8bit` apply while a teacher is loaded "
                "by name, but " + ("no teacher was given." if teacher is None else "the teacher is a model already.")
            )
        return teacher
    arguments: dict[str, Any] = {
        "revision": args.teacher_model_revision,
        "trust_remote_code": args.trust_remote_code,
        **(args.teacher_model_init_kwargs or {}),  # type: ignore[dict-item]
    }
    if quantised:
        from trl import ModelConfig

        arguments["quantization_config"] = build_quantization_config(
            ModelConfig(
                load_in_4bit=args.teacher_load_in_4bit,
                load_in_8bit=args.teacher_load_in_8bit,
                dtype=arguments.get("dtype", "float32"),
            )
        )
    stage = args.deepspeed_plugin.zero_stage if args.deepspeed_plugin is not None else None
    sharded = resolve_placement(args.teacher_deepspeed, stage, bool(args.fsdp), quantised) != "replicate"
    with contextlib.nullcontext() if sharded and not cut else whole_weights():
        return load_model(teacher, **arguments)


def open_cache(args: SinKDConfig, model: Any, teacher: Any) -> CachedTeacher | None:
    """The cache that `args` names, of the teacher that is named beside it, if one is; or `None`."""
    if args.teacher_cache is None:
        return None
    if teacher is not None and model is not None:
        raise InputError(
            "A teacher was given both as `teacher_model` and as `args.teacher_cache`; give one. With a cache a "
            "teacher is needed only where no `model` is given and the student is cut from it."
        )
    cache = CachedTeacher(args.teacher_cache)
    name = teacher if isinstance(teacher, str) else args.teacher_model_name_or_path
    cache.check_teacher(name, args.teacher_model_revision, args.teacher_quantised)
    return cache


def load_student(
    model: Any,
    teacher: Any,
    args: SinKDConfig,
    quantization_config: Any,
    classes: Sequence[str] | None = None,
    load: Callable[..., Any] = load_model,
    teacher_classes: tuple[str, ...] | None = None,
    seen: tuple[Any, Any] | None = None,
) -> PreTrainedModel:
    """
    The student that `model` and `args` describe.

    Args:
        model, teacher, args, quantization_config: as in the trainer.
        classes (`Sequence[str]`, *optional*): what a new classification head would learn.
        load (`Callable`, *optional*): what makes a model of a name; [`~sinkd_llm.models.blueprint.blueprint`] makes
            one without weights.
        teacher_classes (`tuple[str, ...]`, *optional*): the names of the classes of a teacher that is not loaded, in
            their order.
        seen (`tuple`, *optional*): the tokenizer and the training rows by which layers are chosen.
    """
    with whole_weights():
        return _load_student(model, teacher, args, quantization_config, classes, load, teacher_classes, seen)


def _load_student(
    model: Any,
    teacher: Any,
    args: SinKDConfig,
    quantization_config: Any,
    classes: Sequence[str] | None,
    load: Callable[..., Any],
    teacher_classes: tuple[str, ...] | None,
    seen: tuple[Any, Any] | None,
) -> PreTrainedModel:
    if model is None:
        if teacher is None or args.student_layers is None:
            raise InputError(
                "No student was given. Pass `model`, or a teacher and `args.student_layers` to build the student "
                "from the teacher's layers."
            )
        if args.model_kind is not None:
            raise InputError("`model_kind` is set, but a student made of the teacher's layers is of its kind.")
        if is_partitioned(teacher):
            raise InputError(
                "The teacher's weights are spread over the processes already, so no student can be cut from it; give "
                "the teacher by name."
            )
        return cut_student(teacher, args, *(seen or (None, None)))
    if isinstance(model, str):
        arguments: dict[str, Any] = {
            "trust_remote_code": args.trust_remote_code,
            "kind": args.model_kind,
            "labels": classes if _has_classes_to_learn(teacher, args.signal) else None,
            **(args.model_init_kwargs or {}),  # type: ignore[dict-item]
        }
        student = load(model, quantization_config=quantization_config, **arguments)
        if classes and "labels" not in (args.model_init_kwargs or {}) and is_new_head(student):
            words = teacher_classes if teacher is None else class_words(unwrap(teacher).config)
            if same_words(words, classes):  # a new head learns the teacher's classes by their numbers
                order = class_order(tuple(classes), words)
                name_classes(unwrap(student).config, [classes[order.index(c)] for c in range(len(classes))])
        if args.student_layers is None:
            return student
        return cut_student(student, args, *(seen or (None, None)))
    for name, value in (
        ("quantization_config", quantization_config),
        ("args.model_init_kwargs", args.model_init_kwargs),
        ("args.student_layers", args.student_layers),
        ("args.model_kind", args.model_kind),
    ):
        if value is not None:
            raise InputError(
                f"`{name}` applies while the student is loaded by name, but `model` is a "
                f"{type(model).__name__} already; pass the name instead, or drop `{name}`."
            )
    return model


def _has_classes_to_learn(teacher: Any, signal: str) -> bool:
    """Whether a new classification head would: beside the tokens of a teacher that scores words it has nothing."""
    if teacher is None or signal == "choices" or kind_of(teacher).scores_classes:
        return True
    return signal == "auto" and kind_of(teacher).body != "encoder"  # a masked model can teach another its words


def default_tokenizer(model: Any, teacher: Any, args: SinKDConfig) -> Any:
    """The tokenizer that belongs to the student, else to the teacher."""
    for source in (model, args.teacher_model_name_or_path, teacher):
        name = source if isinstance(source, str) else source and name_of(source)
        if name:
            return load_tokenizer(name, trust_remote_code=args.trust_remote_code)
    if model is None and teacher is None:
        raise InputError("No student was given; pass `model`.")
    raise InputError(
        "The model does not say where it comes from, so its tokenizer cannot be found; pass it as `processing_class`."
    )
