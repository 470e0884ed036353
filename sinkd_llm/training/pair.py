"""Student and teacher of a run: loaded, and checked to be two models that speak the same tokens."""

import contextlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from sinkd_llm.errors import InputError
from sinkd_llm.models.kinds import kind_of, output_size, unwrap
from sinkd_llm.models.kinds.choose import (
    class_order,
    class_words,
    is_new_head,
    name_classes,
    same_words,
    warn_of_router,
)
from sinkd_llm.models.layers import select_layers
from sinkd_llm.models.loading import build_quantization_config, load_model
from sinkd_llm.models.pair_checks import check_apart, check_has_weights
from sinkd_llm.models.partitioning import is_partitioned, whole_weights
from sinkd_llm.models.probes import check_reading, float_dtypes
from sinkd_llm.models.tokenizers import NoTokenizerError, check_same_tokenizer, load_tokenizer
from sinkd_llm.teachers import CachedTeacher, resolve_placement
from sinkd_llm.training.config import SinKDConfig

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pair:
    """Student and teacher of a run, or the teacher's cache, and their tokenizer."""

    student: Any
    teacher: Any
    cache: CachedTeacher | None
    tokenizer: Any


def load_pair(
    model: Any,
    teacher_model: Any,
    args: SinKDConfig,
    tokenizer: Any,
    quantization_config: Any,
    classes: Sequence[str] | None,
) -> Pair:
    """
    What a trainer was given, loaded and checked to fit together.

    Args:
        model, teacher_model, args, tokenizer, quantization_config: those of the trainer.
        classes (`Sequence[str]`, *optional*): what a new classification head of the student would learn.
    """
    cache = open_cache(args, model, teacher_model)
    # With a cache the teacher is loaded only for the student to be cut from it.
    teacher = load_teacher(teacher_model, args, cut=model is None) if cache is None or model is None else None
    if tokenizer is None:
        tokenizer = default_tokenizer(model, teacher, args)
    if cache is not None and not cache.manifest.teacher.scores_classes:
        classes = None  # as beside a teacher that scores words
    student = load_student(model, teacher, args, quantization_config, classes)
    for role, loaded in (("The teacher", teacher), ("The student", student)):
        if loaded is not None:
            check_has_weights(loaded, role)
            # load_model has asked its own, but not in what the run computes.
            if not hasattr(unwrap(loaded), "sinkd_source") or len(float_dtypes(loaded)) > 1:
                check_reading(loaded, role, _precision(args))
    warn_of_router(unwrap(student))
    if cache is not None or teacher is not None:
        warn_of_regression(student, args)
    if cache is not None:
        check_cache(cache, args, student, tokenizer)
        return Pair(student, None, cache, tokenizer)
    if teacher is not None:
        name = teacher_model if isinstance(teacher_model, str) else args.teacher_model_name_or_path
        check_pair(teacher, name, student, tokenizer, args.trust_remote_code, classes)
        check_apart(teacher, student)
    return Pair(student, teacher, None, tokenizer)


def _precision(args: SinKDConfig) -> torch.dtype:
    """What the run computes in: the dtype of its autocast, else float32."""
    return torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else torch.float32


def warn_of_regression(student: Any, args: SinKDConfig) -> None:
    """
    Warns where the transport term would drown the squared errors of a regression. On STS-B the default weight was
    harmful, an eighth of it hardly (docs/log.md, 2026-11-24).
    """
    regression = kind_of(student).scores_classes and output_size(student) == 1
    if regression and args.sinkhorn_weight > 0.1 and args.cost_norm == "l1":
        logger.warning(
            "The student is a regression, and there sinkhorn_weight %g with an L1 cost outweighs the squared errors, "
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
            "A teacher was given both as `teacher_model` and as `args.teacher_cache`; give one. Beside a cache a "
            "teacher is needed only where no `model` is given and the student is cut from it."
        )
    cache = CachedTeacher(args.teacher_cache)
    name = teacher if isinstance(teacher, str) else args.teacher_model_name_or_path
    cache.check_teacher(name, args.teacher_model_revision, args.teacher_quantised)
    return cache


def check_cache(cache: CachedTeacher, args: SinKDConfig, student: Any, tokenizer: Any) -> None:
    """[`check_pair`] for a teacher of which there is only its cache."""
    cache.check_run(
        {name: getattr(args, name) for name in ("max_length", "apply_chat_template", "add_eos")},
        tokenizer,
        kind_of(student).name,
        output_size(student),
    )


def load_student(
    model: Any,
    teacher: Any,
    args: SinKDConfig,
    quantization_config: Any,
    classes: Sequence[str] | None = None,
    load: Callable[..., Any] = load_model,
) -> PreTrainedModel:
    """
    The student that `model` and `args` describe.

    Args:
        model, teacher, args, quantization_config: those of the trainer.
        classes (`Sequence[str]`, *optional*): what a new classification head would learn.
        load (`Callable`, *optional*): what makes a model of a name; [`~sinkd_llm.models.blueprint.blueprint`] makes
            one without weights.
    """
    with whole_weights():
        return _load_student(model, teacher, args, quantization_config, classes, load)


def _load_student(
    model: Any,
    teacher: Any,
    args: SinKDConfig,
    quantization_config: Any,
    classes: Sequence[str] | None,
    load: Callable[..., Any],
) -> PreTrainedModel:
    if model is None:
        if teacher is None or args.student_layers is None:
            raise InputError(
                "No student was given. Pass `model`, or a teacher and `args.student_layers` to build the student "
                "from the teacher's layers."
            )
        if args.model_kind is not None:
            raise InputError("`model_kind` is set, but a student made of the teacher's layers is what the teacher is.")
        if is_partitioned(teacher):
            raise InputError(
                "The teacher's weights are spread over the processes already, so no student can be cut from it; give "
                "the teacher by name."
            )
        return select_layers(teacher, args.student_layers, args.student_decoder_layers)
    if isinstance(model, str):
        arguments: dict[str, Any] = {
            "trust_remote_code": args.trust_remote_code,
            "kind": args.model_kind,
            # Beside a teacher that scores words, a new classification head would have nothing to learn.
            "labels": classes if teacher is None or kind_of(teacher).scores_classes else None,
            **(args.model_init_kwargs or {}),  # type: ignore[dict-item]
        }
        student = load(model, quantization_config=quantization_config, **arguments)
        if classes and "labels" not in (args.model_init_kwargs or {}) and is_new_head(student) and teacher is not None:
            words = class_words(unwrap(teacher).config)
            if same_words(words, classes):  # a new head learns the teacher's classes by their numbers
                order = class_order(tuple(classes), words)
                name_classes(unwrap(student).config, [classes[order.index(c)] for c in range(len(classes))])
        if args.student_layers is None:
            return student
        cut = select_layers(student, args.student_layers, args.student_decoder_layers)
        cut.sinkd_new_modules = student.sinkd_new_modules
        return cut
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


def default_tokenizer(model: Any, teacher: Any, args: SinKDConfig) -> Any:
    """The tokenizer that belongs to the student, else to the teacher."""
    for source in (model, args.teacher_model_name_or_path, teacher):
        name = source if isinstance(source, str) else source and unwrap(source).config._name_or_path
        if name:
            return load_tokenizer(name, trust_remote_code=args.trust_remote_code)
    if model is None and teacher is None:
        raise InputError("No student was given; pass `model`.")
    raise InputError(
        "The model does not say where it comes from, so its tokenizer cannot be found; pass it as `processing_class`."
    )


def check_pair(
    teacher: Any,
    teacher_name: str | None,
    student: Any,
    tokenizer: Any,
    trust: bool,
    classes: Sequence[str] | None = None,
) -> None:
    """
    Refuses a teacher whose outputs mean something else than the student's: other classes, other tokens.

    Args:
        teacher (`PreTrainedModel`): the teacher.
        teacher_name (`str`, *optional*): what it was loaded by. Default: what the model says of itself.
        student (`PreTrainedModel`): the student.
        tokenizer (`PreTrainedTokenizerBase`): the tokenizer whose ids both models will read.
        trust (`bool`): whether code that comes with the teacher's tokenizer may run.
        classes (`Sequence[str]`, *optional*): the task's, in its order, in which heads without names are read.

    Raises:
        InputError: with the first difference. Vocabularies that are padded to different sizes pass if their
            tokenizers agree, and so do families that score the same vocabulary.
    """
    kinds = [kind_of(model) for model in (teacher, student)]
    sizes = [output_size(model) for model in (teacher, student)]
    if kinds[0].scores_classes != kinds[1].scores_classes:
        raise InputError(
            f"The teacher is an {kinds[0].title} and the student an {kinds[1].title}: the one scores "
            "classes and the other words, so there is nothing to compare. Choose two models of one kind."
        )
    if kinds[0].scores_classes and sizes[0] != sizes[1]:
        raise InputError(
            f"The teacher's classification head has {sizes[0]} outputs and the student's {sizes[1]}; fine-tune the "
            "teacher on this task, or load the student with as many labels."
        )
    if kinds[0].scores_classes:
        words = [class_words(unwrap(model).config) for model in (teacher, student)]
        _check_class_order(words[0], words[1], classes)
    name = teacher_name or unwrap(teacher).config._name_or_path
    if name:
        teacher_tokenizer = _teacher_tokenizer(name, teacher_name is not None, trust)
        if teacher_tokenizer is not None:
            check_same_tokenizer(teacher_tokenizer, tokenizer)
            return
        logger.warning(
            "%s holds no tokenizer of the teacher's, so it is taken to read the student's tokens; if it was trained "
            "with another tokenizer, what it says is about other words. Save its tokenizer beside it.",
            name,
        )
    if kinds[0].scores_classes:
        sizes = [model.get_input_embeddings().weight.shape[0] for model in (teacher, student)]
    if sizes[0] != sizes[1]:
        raise InputError(
            f"The teacher knows {sizes[0]} tokens and the student {sizes[1]}, and the teacher's tokenizer could "
            "not be found to check that they agree; give the teacher by name, or save its tokenizer beside it."
        )


def _check_class_order(
    theirs: tuple[str, ...] | None, ours: tuple[str, ...] | None, classes: Sequence[str] | None
) -> None:
    """Refuses a teacher whose classes stand in another order than the student's: the loss compares their numbers."""
    reordered = bool(theirs and ours) and theirs != ours and set(theirs or ()) == set(ours or ())
    if not reordered and classes:
        # A head that calls its classes something else is read in the task's order.
        reordered = class_order(tuple(classes), theirs) != class_order(tuple(classes), ours)
    if not reordered:
        return
    each = [
        ", ".join(words) if words else "without names, taken in the task's order: " + ", ".join(classes or ())
        for words in (theirs, ours)
    ]
    raise InputError(
        f"The teacher's classes are {each[0]}, and the student's {each[1]}: the same in another order, and the loss "
        "compares them by number. Start the student from its encoder without a classification head, and it gets one "
        "in the teacher's order; or cut it from the teacher (student_layers). If a head's order is known to be "
        "another, write it into id2label of its config.json."
    )


def _teacher_tokenizer(name: str, is_named: bool, trust: bool) -> Any:
    """The teacher's tokenizer, or `None` if it came without one; then its width is all that can be checked."""
    try:
        return load_tokenizer(name, trust_remote_code=trust)
    except NoTokenizerError:
        return None
    except InputError as error:
        if not is_named and not Path(name).exists():
            return None  # a model in memory, whose folder is gone or was never on this machine
        raise InputError(
            f"The teacher's tokenizer cannot be read, so nobody can say whether its tokens are the student's: {error}"
        ) from error
