"""PEFT adapters: from TRL's flags onto a student, so that they train and that what is saved loads as it was."""

import copy
import logging
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from sinkd_llm.errors import InputError, first_line
from sinkd_llm.models.adapter_checks import (
    check_adapted,
    check_all_found,
    check_given,
    check_method,
    refuse_hidden_adapter,
)
from sinkd_llm.models.kinds import kind_of
from sinkd_llm.models.origin import new_modules_of
from sinkd_llm.models.partitioning import whole_weights
from sinkd_llm.models.quantisation import WHILE_LOADING, is_quantised, keep_trainable, quantisation_of
from sinkd_llm.models.wrappers import unwrap

if TYPE_CHECKING:
    from trl import ModelConfig

logger = logging.getLogger(__name__)

# PEFT's name of a setting, where the command line does not say `lora_` and this name.
_FLAGS = {"r": "lora_r", "use_dora": "use_dora", "use_rslora": "use_rslora", "init_lora_weights": None}
_SETTINGS = (
    *("target_modules", "lora_alpha", "lora_dropout", "modules_to_save", "target_parameters", "task_type"),
    *("use_dora", "use_rslora", "init_lora_weights", "r"),
)


def adapter_config(model_args: "ModelConfig") -> Any:
    """
    The PEFT configuration that TRL's arguments ask for, or `None`.

    Args:
        model_args (`ModelConfig`): its `use_peft` and `lora_…` are read; target modules that are left out are set.
    """
    from trl import ModelConfig, get_peft_config

    if model_args.use_peft and model_args.lora_target_modules is None:
        model_args.lora_target_modules = "all-linear"  # type: ignore[assignment]
    config: Any = get_peft_config(model_args)
    modules = getattr(config, "target_modules", None)
    if isinstance(modules, str) and modules != "all-linear" and re.fullmatch(r"[\w.]+", modules):
        # TRL unpacks a list of one, and PEFT takes text for a pattern of whole names.
        config.target_modules = {modules}
    if config is not None and model_args.lora_task_type == ModelConfig.lora_task_type:
        config.task_type = None  # TRL's default, whatever the model: the student's kind gives it
    return config


def add_adapter(student: Any, peft_config: Any, zero_stage: int | None = None) -> Any:
    """
    The student with a new adapter, if a configuration was given.

    Without a task type of its own, the configuration gets the type of the student's kind. A head with random weights
    is trained and saved beside the adapter. Under stage 3 of DeepSpeed (`zero_stage`) the adapter has the type of the
    student's weights: DeepSpeed cannot keep small bfloat16 and float32 parameters together.

    Args:
        student (`PreTrainedModel` or `PeftModel`): a PEFT model only where there is no `peft_config`.
        peft_config (`PeftConfig`, *optional*): the adapter; it is not changed.
        zero_stage (`int`, *optional*): DeepSpeed's stage.

    Raises:
        InputError: if the adapter does not fit the student, or could not be saved so that it loads as it was. PEFT's
            own refusals come before the student is touched.
    """
    from peft import PeftModel, get_peft_model, prepare_model_for_kbit_training

    refuse_hidden_adapter(student)
    if peft_config is None:
        if hasattr(student, "peft_config"):
            check_given(student)
            check_adapted(student)
        return student
    if isinstance(student, PeftModel):
        raise InputError(
            "The student is a PEFT model already and a `peft_config` was given too; merge the adapter first, or "
            "drop `peft_config`."
        )
    check_method(peft_config)
    check_all_found(student, peft_config)
    peft_config = _fitted(student, copy.deepcopy(peft_config))
    if quantisation_of(student) in WHILE_LOADING:
        student = prepare_model_for_kbit_training(student, use_gradient_checkpointing=False)
        keep_trainable(student)
    wide = zero_stage != 3 or is_quantised(student)
    try:
        with whole_weights():
            adapted = get_peft_model(student, peft_config, autocast_adapter_dtype=wide)
    except Exception as error:  # PEFT raises whatever its parts raise
        raise _misfit(student, error) from error
    check_adapted(adapted)
    return adapted


def _fitted(student: Any, config: Any) -> Any:
    """
    The configuration with what this student needs.

    It is tried on the student's shape without weights, so that a refusal of PEFT leaves the student as it was.
    """
    from peft import get_peft_model

    task_type = kind_of(student).lora_task_type
    if config.task_type is None:
        config.task_type = task_type
    elif config.task_type != task_type:
        logger.warning(
            "The adapter's task type is %s, but %s is of the type %s.",
            getattr(config.task_type, "value", config.task_type),
            type(unwrap(student)).__name__,
            task_type,
        )
    new_modules = new_modules_of(student)
    if new_modules and hasattr(config, "modules_to_save"):
        config.modules_to_save = sorted({*(config.modules_to_save or ()), *new_modules})
    # PEFT trains a classification head whole, under these names.
    whole = set(getattr(config, "modules_to_save", None) or ())
    if task_type == "SEQ_CLS":
        whole |= {"classifier", "score"}
    _exclude(config, _linear_layers_in(student, tuple(whole)))
    for _ in range(len(_REMEDIES) + 1):
        shape = _shape_of(student)
        trial = copy.deepcopy(config)
        if hasattr(trial, "init_lora_weights"):
            trial.init_lora_weights = True  # others read the weights, and there are none
        try:
            if shape is not None:
                get_peft_model(shape, trial)
            return config
        except Exception as error:  # PEFT raises whatever its parts raise
            if not _remedied(config, str(error)):
                raise _misfit(student, error) from error
    return config


def _linear_layers_in(model: Any, endings: tuple[str, ...]) -> list[str]:
    """Linear layers that are, or lie in, a module whose name ends so: what PEFT trains whole takes no adapter."""
    if not endings:
        return []
    parts = {name for name, _ in model.named_modules() if name.endswith(endings)}
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and any(part in parts for part in _paths_to(name))
    ]


def _paths_to(name: str) -> Iterator[str]:
    """`a.b.c`: `a`, `a.b`, `a.b.c`."""
    words = name.split(".")
    return (".".join(words[: i + 1]) for i in range(len(words)))


def _exclude(config: Any, modules: list[str]) -> None:
    if not modules or not hasattr(config, "exclude_modules"):
        return
    given = config.exclude_modules
    if isinstance(given, str):  # a regular expression
        config.exclude_modules = "|".join([f"(?:{given})", *(rf"(?:.*\.)?{re.escape(name)}" for name in modules)])
    else:
        config.exclude_modules = sorted({*(given or ()), *modules})


def _without_mamba_kernels(config: Any) -> bool:
    if config.target_modules != "all-linear" or "out_proj" in (config.exclude_modules or ()):
        return False
    _exclude(config, ["out_proj", "conv1d"])
    logger.warning("The adapter leaves out_proj and conv1d out: Mamba's kernels read their weights past an adapter.")
    return True


def _without_dropout(config: Any) -> bool:
    if not config.lora_dropout:
        return False
    logger.warning(
        "--lora_dropout %g is set to 0: experts whose weights are one tensor take an adapter without dropout only.",
        config.lora_dropout,
    )
    config.lora_dropout = 0.0
    return True


# A word of PEFT's refusal, and what makes the configuration fit; `False` where it cannot.
_REMEDIES = {"Mamba-based": _without_mamba_kernels, "does not work with lora_dropout": _without_dropout}


def _remedied(config: Any, refusal: str) -> bool:
    return any(word in refusal and remedy(config) for word, remedy in _REMEDIES.items())


def _shape_of(student: Any) -> Any:
    """The student on the meta device, or `None` where its class cannot be built from its configuration alone."""
    with torch.device("meta"):
        try:
            return type(student)(copy.deepcopy(student.config))
        except Exception:  # a class of the user's own may ask for more, or for weights that are here
            return None


def _misfit(student: Any, error: Exception) -> InputError:
    said = first_line(error)
    # PEFT writes `target_modules` and "Target modules".
    words = {
        name: re.compile(rf"\b{name.replace('_', '[_ ]')}\b", re.IGNORECASE if "_" in name else 0)
        for name in _SETTINGS
    }
    named = [name for name in _SETTINGS if words[name].search(said)][:1]
    flags = [f"--{_FLAGS.get(name) or 'lora_' + name}" for name in named if _FLAGS.get(name, "") is not None]
    advice = f"Change {flags[0]} ({named[0]} of `peft_config`)." if flags else "Change --lora_… or `peft_config`."
    return InputError(f"The adapter does not fit {type(unwrap(student)).__name__}: {said}. {advice}")
