"""Student and teacher of a run: loaded, checked to speak the same tokens, the student given its adapter."""

from typing import Any

from transformers import PreTrainedModel

from sinkd_llm.config import SinKDConfig
from sinkd_llm.errors import InputError
from sinkd_llm.models.architectures import unwrap
from sinkd_llm.models.loading import build_quantization_config, load_model
from sinkd_llm.models.pruning import select_layers
from sinkd_llm.models.tokenization import check_same_tokenizer, load_tokenizer


def load_teacher(teacher: str | PreTrainedModel | None, args: SinKDConfig) -> Any:
    """The teacher that `teacher` or `args` names, or `None`."""
    if teacher is not None and args.teacher_model_name_or_path is not None:
        raise InputError(
            "A teacher was given both as `teacher_model` and as `args.teacher_model_name_or_path`; give one."
        )
    teacher = teacher if teacher is not None else args.teacher_model_name_or_path
    quantised = args.teacher_load_in_4bit or args.teacher_load_in_8bit
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
    return load_model(teacher, **arguments)


def load_student(model: Any, teacher: Any, args: SinKDConfig, quantization_config: Any) -> PreTrainedModel:
    if model is None:
        if teacher is None or args.student_layers is None:
            raise InputError(
                "No student was given. Pass `model`, or a teacher and `args.student_layers` to build the student "
                "from the teacher's layers."
            )
        return select_layers(teacher, args.student_layers)
    if isinstance(model, str):
        arguments = {"trust_remote_code": args.trust_remote_code, **(args.model_init_kwargs or {})}  # type: ignore[dict-item]
        student = load_model(model, quantization_config=quantization_config, **arguments)
        return select_layers(student, args.student_layers) if args.student_layers else student
    for name, value in (
        ("quantization_config", quantization_config),
        ("args.model_init_kwargs", args.model_init_kwargs),
        ("args.student_layers", args.student_layers),
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


def check_vocabularies(teacher: Any, teacher_name: str | None, student: Any, tokenizer: Any, trust: bool) -> None:
    """
    Refuses a teacher that means another token by an id than the student.

    Args:
        teacher (`PreTrainedModel`): the teacher.
        teacher_name (`str`, *optional*): what it was loaded by. Default: what the model says of itself.
        student (`PreTrainedModel`): the student.
        tokenizer (`PreTrainedTokenizerBase`): the tokenizer whose ids both models will read.
        trust (`bool`): whether code that comes with the teacher's tokenizer may run.

    Raises:
        InputError: with the first difference. Vocabularies that are padded to different sizes pass if their
            tokenizers agree.
    """
    name = teacher_name or unwrap(teacher).config._name_or_path
    if name:
        try:
            teacher_tokenizer = load_tokenizer(name, trust_remote_code=trust)
        except InputError:
            teacher_tokenizer = None  # a teacher that came without one; its width is checked below
        if teacher_tokenizer is not None:
            check_same_tokenizer(teacher_tokenizer, tokenizer)
            return
    sizes = [m.get_output_embeddings().weight.shape[0] for m in (teacher, student)]
    if sizes[0] != sizes[1]:
        raise InputError(
            f"The teacher scores {sizes[0]} tokens and the student {sizes[1]}, and the teacher's tokenizer could "
            "not be found to check that they agree; give the teacher by name, or save its tokenizer beside it."
        )


def add_adapter(student: Any, peft_config: Any) -> Any:
    """The student with a new adapter, if a configuration was given."""
    if peft_config is None:
        return student
    from peft import PeftModel, PromptLearningConfig, get_peft_model, prepare_model_for_kbit_training

    if isinstance(student, PeftModel):
        raise InputError(
            "The student is a PEFT model already and a `peft_config` was given too; merge the adapter first, or "
            "drop `peft_config`."
        )
    if isinstance(peft_config, PromptLearningConfig):
        raise InputError(
            f"{type(peft_config).__name__} puts virtual tokens in front of the prompt, which moves the answer "
            "positions away from the teacher's; use LoRA."
        )
    if getattr(student, "is_loaded_in_4bit", False) or getattr(student, "is_loaded_in_8bit", False):
        student = prepare_model_for_kbit_training(student, use_gradient_checkpointing=False)
    try:
        return get_peft_model(student, peft_config)
    except ValueError as error:  # e.g. target modules that the model does not have
        raise InputError(f"The adapter does not fit {type(unwrap(student)).__name__}: {error}") from error
