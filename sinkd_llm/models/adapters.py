"""PEFT adapters on a student: put on so that they train, and such that what is saved of them loads as it was."""

import copy
import logging
import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sinkd_llm.errors import InputError
from sinkd_llm.models.architectures import get_architecture, unwrap
from sinkd_llm.models.partitioning import whole_weights

logger = logging.getLogger(__name__)

# Adapters that Transformers itself loads from a folder as PEFT wrote them: tests/models/test_adapters.py holds it.
# The others share weights between their layers, or keep something under a name that Transformers does not know.
_LOADED_BY_TRANSFORMERS = {
    *("LORA", "ADALORA", "IA3", "LOHA", "LOKR", "OFT", "BOFT", "HRA", "LN_TUNING", "GRALORA", "DELORA"),
    "TRAINABLE_TOKENS",
}
# Initialisations of LoRA that leave the base as it is; PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA take a part out of it.
_LEAVES_BASE = ("gaussian", "eva", "orthogonal")
# PEFT's name of a setting, where the command line has another one than `lora_` in front of it.
_FLAGS = {"r": "lora_r", "use_dora": "use_dora", "use_rslora": "use_rslora", "init_lora_weights": None}
_SETTINGS = (
    *("target_modules", "lora_alpha", "lora_dropout", "modules_to_save", "target_parameters", "task_type"),
    *("use_dora", "use_rslora", "init_lora_weights", "r"),
)


def add_adapter(student: Any, peft_config: Any, zero_stage: int | None = None) -> Any:
    """
    The student with a new adapter, if a configuration was given.

    Without a task type of its own, the configuration gets that of the student's family. A head with random weights
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
            _check_given(student)
            _check_adapted(student)
        return student
    if isinstance(student, PeftModel):
        raise InputError(
            "The student is a PEFT model already and a `peft_config` was given too; merge the adapter first, or "
            "drop `peft_config`."
        )
    _check_method(peft_config)
    peft_config = _fitted(student, copy.deepcopy(peft_config))
    if getattr(student, "is_loaded_in_4bit", False) or getattr(student, "is_loaded_in_8bit", False):
        student = prepare_model_for_kbit_training(student, use_gradient_checkpointing=False)
        for module in student.modules():
            # On a CPU with AVX512-BF16 bitsandbytes repacks a layer's weights at its first forward without gradient,
            # for good, and from then on no gradient passes the layer: scoring a student would end its training.
            if hasattr(module, "support_avx512bf16_for_cpu"):
                module.support_avx512bf16_for_cpu = False
    quantised = getattr(student, "quantization_method", None) is not None
    try:
        with whole_weights():
            adapted = get_peft_model(student, peft_config, autocast_adapter_dtype=zero_stage != 3 or quantised)
    except Exception as error:  # PEFT raises whatever its parts raise
        raise _misfit(student, error) from error
    _check_adapted(adapted)
    return adapted


def refuse_hidden_adapter(model: Any) -> None:
    """
    Refuses a model into which Transformers itself put an adapter: nobody else can see that it is there.

    Raises:
        InputError: saying how to load the model instead.
    """
    if getattr(model, "_hf_peft_config_loaded", False):
        raise InputError(
            f"This {type(model).__name__} holds an adapter that Transformers put into it, which is neither trained "
            "nor saved here; load it with sinkd_llm.load_model(folder, merge_adapter=False), or fold it in with "
            "sinkd_llm.load_model(folder)."
        )


def is_switched_off(adapted: Any) -> bool:
    """Whether the adapters of a PEFT model change nothing that it computes."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [module for module in adapted.modules() if isinstance(module, BaseTunerLayer)]
    return bool(layers) and all(layer.disable_adapters for layer in layers)


def _check_method(peft_config: Any) -> None:
    from peft import PromptLearningConfig

    if isinstance(peft_config, PromptLearningConfig):
        raise InputError(
            f"{type(peft_config).__name__} puts virtual tokens in front of the prompt, which moves the answer "
            "positions away from the teacher's; use LoRA."
        )
    if getattr(peft_config, "init_lora_weights", None) == "eva":
        raise InputError(
            "init_lora_weights 'eva' begins with what the layers read from a data set, which a `peft_config` alone "
            "cannot give; pass the student as a PEFT model after peft.initialize_lora_eva_weights."
        )
    if getattr(peft_config, "layer_replication", None):
        raise InputError(
            "layer_replication makes several layers of one layer's weights, which cannot be saved as an ordinary "
            "model; drop it."
        )


def _fitted(student: Any, config: Any) -> Any:
    """
    The configuration with what this student needs.

    It is tried on the student's shape without weights, so that a refusal of PEFT leaves the student as it was.
    """
    from peft import get_peft_model

    task_type = get_architecture(student).lora_task_type
    if config.task_type is None:
        config.task_type = task_type
    elif config.task_type != task_type:
        logger.warning(
            "The adapter's task type is %s, but %s is of the type %s.",
            getattr(config.task_type, "value", config.task_type),
            type(unwrap(student)).__name__,
            task_type,
        )
    new_modules = getattr(student, "sinkd_new_modules", ())
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
    said = next((line.strip() for line in str(error).splitlines() if line.strip()), repr(error))
    # PEFT writes `target_modules` and "Target modules".
    words = {
        name: re.compile(rf"\b{name.replace('_', '[_ ]')}\b", re.IGNORECASE if "_" in name else 0)
        for name in _SETTINGS
    }
    named = [name for name in _SETTINGS if words[name].search(said)][:1]
    flags = [f"--{_FLAGS.get(name) or 'lora_' + name}" for name in named if _FLAGS.get(name, "") is not None]
    advice = f"Change {flags[0]} ({named[0]} of `peft_config`)." if flags else "Change --lora_… or `peft_config`."
    return InputError(f"The adapter does not fit {type(unwrap(student)).__name__}: {said.rstrip('.')}. {advice}")


def _check_given(student: Any) -> None:
    """Refuses a PEFT model that is in a state in which it would not train, or not be saved, as it looks."""
    from peft import PeftModel, PromptLearningConfig
    from peft.tuners.tuners_utils import BaseTunerLayer

    if not isinstance(student, PeftModel):
        raise InputError(
            f"The student is a {type(student).__name__}, whose adapters are not saved as one; give a PeftModel with "
            "one adapter."
        )
    names = list(student.peft_config)
    if len(names) != 1:
        raise InputError(
            f"The student holds the adapters {', '.join(names)}, and one is trained and saved; take the others out "
            "with delete_adapter, or fold them in with merge_and_unload."
        )
    config = student.peft_config[names[0]]
    if isinstance(config, PromptLearningConfig):
        _check_method(config)
    layers = [module for module in student.modules() if isinstance(module, BaseTunerLayer)]
    if any(layer.merged for layer in layers):
        raise InputError(
            "The student's adapter is merged into its base already, so it would be trained beside itself; call "
            "unmerge_adapter() first, or pass merge_and_unload(), an ordinary model."
        )
    if is_switched_off(student) or (layers and names[0] not in student.active_adapters):
        raise InputError(
            f"The student's adapter {names[0]!r} is switched off, so it would be neither used nor trained; call "
            f"set_adapter({names[0]!r}) or base_model.enable_adapter_layers() first, or pass "
            "get_base_model(), the model without it."
        )


def _check_adapted(adapted: Any) -> None:
    """Refuses an adapter that would not load as it was trained, before it is trained."""
    from peft.tuners.trainable_tokens import TrainableTokensLayer
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import ModulesToSaveWrapper

    base = unwrap(adapted)
    tuners = {name: module for name, module in base.named_modules() if isinstance(module, BaseTunerLayer)}
    for name, module in base.named_modules():
        if isinstance(module, ModulesToSaveWrapper) and any(other.startswith(f"{name}.") for other in tuners):
            raise InputError(
                f"{name} is among both the adapter's target modules and the modules that are trained whole; take it "
                "out of --lora_target_modules or of --lora_modules_to_save."
            )
    holders: dict[int, set[str]] = {}
    for name, module in base.named_modules(remove_duplicate=False):
        for parameter in module.parameters(recurse=False):
            holders.setdefault(id(parameter), set()).add(_plain_name(name))
    for name, module in tuners.items():
        if isinstance(module, TrainableTokensLayer):
            continue  # PEFT ties these themselves
        for parameter in module.get_base_layer().parameters(recurse=False):
            others = sorted(holders[id(parameter)] - {_plain_name(name)})
            if others:
                raise InputError(
                    f"The adapter's target {name} shares its weight with {others[0]} (tied embeddings), which the "
                    "adapter would change too once it is folded in; leave it out of --lora_target_modules "
                    "(all-linear leaves it out), or untie the weights first."
                )
    _check_merges(base, tuners)
    if loads_merged_only(adapted) and getattr(base, "quantization_method", None) is not None:
        raise InputError(
            f"An adapter of the kind {_kind(adapted)} is saved folded into its base, for Transformers cannot load it "
            "otherwise, and a quantised base cannot take it in; use plain LoRA, or load the student without "
            "quantisation."
        )


def _check_merges(base: Any, tuners: Mapping[str, Any]) -> None:
    """One layer of each kind is folded into a copy of itself: what PEFT cannot fold in, no folder can be loaded of."""
    if getattr(base, "quantization_method", None) is not None:
        return  # there it stays beside its base
    kinds: dict[tuple[Any, ...], tuple[str, Any]] = {}
    for name, module in tuners.items():
        inner = module.get_base_layer()
        kinds.setdefault((type(module), type(inner), getattr(inner, "bias", None) is None), (name, module))
    for name, module in kinds.values():
        if any(parameter.is_meta or hasattr(parameter, "ds_id") for parameter in module.parameters()):
            continue
        try:
            copy.deepcopy(module).merge()
        except Exception as error:  # PEFT raises whatever its parts raise
            said = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise InputError(
                f"The adapter cannot be folded into {name} ({said}), and the student could not be loaded as an "
                "ordinary model; change `peft_config`."
            ) from error


def _kind(adapted: Any) -> str:
    config = next(iter(adapted.peft_config.values()))
    kind = str(getattr(config.peft_type, "value", config.peft_type))
    return "DoRA" if getattr(config, "use_dora", False) else kind


def loads_merged_only(adapted: Any) -> bool:
    """Whether Transformers could not load this adapter beside its base: it is saved folded in."""
    from peft.tuners.lora import LoraLayer

    config = next(iter(adapted.peft_config.values()))
    if str(getattr(config.peft_type, "value", config.peft_type)) not in _LOADED_BY_TRANSFORMERS:
        return True
    # DoRA and its like keep more than the two matrices.
    return any(isinstance(module, LoraLayer) and module.lora_variant for module in unwrap(adapted).modules())


def changes_base(adapted: Any) -> bool:
    """Whether putting the adapter on has changed its base, as PiSSA does: no name gives that base again."""
    config = next(iter(adapted.peft_config.values()))
    start = getattr(config, "init_lora_weights", True)
    return isinstance(start, str) and start.lower() not in _LEAVES_BASE


def _plain_name(name: str) -> str:
    """A module's name before PEFT put its layers around it."""
    return ".".join(word for word in name.split(".") if word not in ("base_layer", "original_module", "token_adapter"))


def base_weights(adapted: Any, state_dict: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """
    The weights of an adapter's base, under the names that they had before PEFT put its layers around them.

    Args:
        adapted (`PeftModel`): with any number of adapters.
        state_dict (`Mapping`, *optional*): the gathered weights of `adapted`, where it holds only a part of them.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    base = unwrap(adapted)
    if state_dict is None:
        weights = base.state_dict()
    else:
        weights = {name.removeprefix("base_model.model."): value for name, value in state_dict.items()}
    # Below these modules only the named children belong to the base.
    kept_below: dict[str, tuple[str, ...]] = {}
    for name, module in base.named_modules():
        if isinstance(module, BaseTunerLayer):
            kept_below[name] = ("base_layer",)
        elif isinstance(module, AuxiliaryTrainingWrapper):
            kept_below[name] = ("original_module", "token_adapter")

    def belongs(name: str) -> bool:
        words = name.split(".")
        below = ((".".join(words[:i]), words[i]) for i in range(1, len(words)))
        return all(child in kept_below.get(parent, (child,)) for parent, child in below)

    return {_plain_name(name) if kept_below else name: value for name, value in weights.items() if belongs(name)}
