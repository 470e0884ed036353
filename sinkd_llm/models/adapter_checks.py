"""Adapters that would not train, or not load as they were trained: refused before training."""

import copy
import math
from collections.abc import Mapping
from typing import Any

from sinkd_llm.errors import InputError, first_line, nearest
from sinkd_llm.models.adapter_facts import is_switched_off, loads_merged_only, peft_type_of, plain_name
from sinkd_llm.models.partitioning import is_part
from sinkd_llm.models.quantisation import is_quantised
from sinkd_llm.models.wrappers import unwrap


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


def check_method(peft_config: Any) -> None:
    """Refuses what is no configuration of PEFT, and methods that cannot train a student here."""
    from peft import PeftConfig, PromptLearningConfig

    if not isinstance(peft_config, PeftConfig):
        raise InputError(
            f"`peft_config` is a {type(peft_config).__name__}; give a configuration of PEFT, such as "
            "LoraConfig(r=16, target_modules='all-linear')."
        )
    if isinstance(peft_config, PromptLearningConfig):
        raise InputError(
            f"{type(peft_config).__name__} puts virtual tokens before the prompt, which moves the answer "
            "positions away from the teacher's; use LoRA."
        )
    _check_numbers(peft_config)
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


def _check_numbers(peft_config: Any) -> None:
    """Refuses numbers with which an adapter's part of every output, and so its gradient, is 0 or not finite."""
    for name, value in vars(peft_config).items():
        if name.endswith("dropout") and isinstance(value, (int, float)) and not 0 <= value < 1:
            raise InputError(f"peft_config has {name}={value}, with which nothing is trained; give 0 to below 1.")
        if name in ("lora_alpha", "alpha"):
            scales = {name: value}
        elif name == "alpha_pattern":
            scales = {f"{name}[{key!r}]": scale for key, scale in (value or {}).items()}
        else:
            continue
        for shown_as, scale in scales.items():
            if isinstance(scale, (int, float)) and not 0 < scale < math.inf:
                raise InputError(
                    f"peft_config has {shown_as}={scale}, with which nothing is trained; give a number above 0."
                )


def check_given(student: Any) -> None:
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
        check_method(config)
    _check_numbers(config)
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


def check_all_found(student: Any, peft_config: Any) -> None:
    """
    Refuses a name of a module that the student does not have: PEFT is content where it finds one of several.

    Args:
        student (`PreTrainedModel`): without an adapter yet.
        peft_config (`PeftConfig`): as it was given.
    """
    if any("expert" in name and weight.ndim == 3 for name, weight in student.named_parameters()):
        return  # experts whose weights are one tensor are named as in their checkpoint
    names = [name for name, _ in student.named_modules()]
    for setting in ("target_modules", "modules_to_save"):
        wanted = getattr(peft_config, setting, None)
        if wanted is None or isinstance(wanted, str):  # all-linear, or a regular expression
            continue
        for name in sorted(wanted):
            if not any(found == name or found.endswith(f".{name}") for found in names):
                short = sorted({found.rsplit(".", 1)[-1] for found in names} - {""})
                raise InputError(
                    f"{type(student).__name__} has no module {name!r}, which --lora_{setting} names."
                    f"{nearest(name, short)}"
                )


def check_adapted(adapted: Any) -> None:
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
            holders.setdefault(id(parameter), set()).add(plain_name(name))
    for name, module in tuners.items():
        if isinstance(module, TrainableTokensLayer):
            continue  # PEFT ties these themselves
        for parameter in module.get_base_layer().parameters(recurse=False):
            others = sorted(holders[id(parameter)] - {plain_name(name)})
            if others:
                raise InputError(
                    f"The adapter's target {name} shares its weight with {others[0]} (tied embeddings), which the "
                    "adapter would change too once it is folded in; leave it out of --lora_target_modules "
                    "(all-linear leaves it out), or untie the weights first."
                )
    _check_merges(base, tuners)
    if loads_merged_only(adapted) and is_quantised(base):
        raise InputError(
            f"An adapter of the type {peft_type_of(adapted)} is saved folded into its base, for Transformers cannot "
            "load it otherwise, and a quantised base cannot take it in; use plain LoRA, or load the student without "
            "quantisation."
        )


def _check_merges(base: Any, tuners: Mapping[str, Any]) -> None:
    """One layer of each kind is folded into a copy of itself: what PEFT cannot fold in, no folder can be loaded of."""
    if is_quantised(base):
        return  # there it stays beside its base
    kinds: dict[tuple[Any, ...], tuple[str, Any]] = {}
    for name, module in tuners.items():
        inner = module.get_base_layer()
        kinds.setdefault((type(module), type(inner), getattr(inner, "bias", None) is None), (name, module))
    for name, module in kinds.values():
        if any(parameter.is_meta or is_part(parameter) for parameter in module.parameters()):
            continue
        try:
            copy.deepcopy(module).merge()
        except Exception as error:  # PEFT raises whatever its parts raise
            raise InputError(
                f"The adapter cannot be folded into {name} ({first_line(error)}), and the student could not be loaded "
                "as an ordinary model; change `peft_config`."
            ) from error
