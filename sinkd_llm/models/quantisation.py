"""Weights that are packed into fewer bits: how bitsandbytes is asked for it, whether a model has them, what they need.

bitsandbytes packs weights while they are loaded. Methods that pack them before (GPTQ, AWQ, …) are known by their name
alone.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import Tensor

from sinkd_llm.errors import InputError, plain
from sinkd_llm.models.wrappers import unwrap

if TYPE_CHECKING:
    from transformers import BitsAndBytesConfig
    from trl import ModelConfig

# What bitsandbytes packs weights into while they are loaded, as `quantisation_of` calls it.
WHILE_LOADING = ("nf4", "fp4", "int8")
_ASKING = ("load_in_4bit", "load_in_8bit", "bnb_4bit_quant_type")


def build_quantization_config(model_args: "ModelConfig") -> "BitsAndBytesConfig | None":
    """
    TRL's `get_quantization_config` with its preconditions checked.

    Args:
        model_args (`ModelConfig`): its `load_in_4bit`, `load_in_8bit`, `bnb_4bit_*`, `dtype` are read.

    Returns:
        `BitsAndBytesConfig`, or `None` if neither 4 nor 8 bits are asked for.

    Raises:
        InputError: if bitsandbytes is not installed, or 4 bits are asked for with dtype `"auto"`.
    """
    if not (model_args.load_in_4bit or model_args.load_in_8bit):
        return None
    from transformers.utils import is_bitsandbytes_available
    from trl import get_quantization_config

    if not is_bitsandbytes_available():
        raise InputError(
            "load_in_4bit and load_in_8bit need bitsandbytes, which is not installed. Install it with: "
            "pip install bitsandbytes"
        )
    if model_args.load_in_4bit and model_args.dtype in (None, "auto"):
        raise InputError(
            f"load_in_4bit computes in the model's dtype, which {model_args.dtype!r} leaves open. "
            "Give bfloat16, float16 or float32."
        )
    return get_quantization_config(model_args)


def check_method_known(name: str, config: Any) -> None:
    """
    Refuses weights that were packed by a method that Transformers does not know: it only warns, and misreads them.

    Args:
        name (`str`): of the model, for the message.
        config (`PretrainedConfig`): of its checkpoint.

    Raises:
        InputError: naming the method.
    """
    from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING

    stored = getattr(config, "quantization_config", None)
    stored = stored if isinstance(stored, dict) else getattr(stored, "__dict__", {})
    method = plain(stored.get("quant_method"))
    if method is not None and method not in AUTO_QUANTIZER_MAPPING and method != "bitsandbytes":
        raise InputError(
            f"The weights of {name!r} are packed by {str(method)!r} (quantization_config in its config.json), which "
            "Transformers does not know here. Give a save of the model that is not quantised, or packed by one of "
            f"{', '.join(sorted(map(str, AUTO_QUANTIZER_MAPPING)))}."
        )


def is_quantised(model: Any) -> bool:
    """Whether a model's weights are packed, by bitsandbytes or any other method; it may be wrapped."""
    return getattr(unwrap(model), "quantization_method", None) is not None


def quantisation_of(model: Any) -> str | None:
    """How a model's weights are packed: `"nf4"`, `"fp4"`, `"int8"`, the name of another method, or `None`."""
    if not is_quantised(model):
        return None
    inner = unwrap(model)
    asked_for = quantisation_asked_for(getattr(inner.config, "quantization_config", None))
    return asked_for or str(plain(inner.quantization_method))


def quantisation_asked_for(config: Any) -> str | None:
    """
    What [`quantisation_of`] will say of a model that is loaded with this configuration.

    Args:
        config (`BitsAndBytesConfig` or `dict`, *optional*): of bitsandbytes.
    """
    settings = config if isinstance(config, dict) else {name: getattr(config, name, None) for name in _ASKING}
    if settings.get("load_in_4bit"):
        return str(settings.get("bnb_4bit_quant_type") or "fp4")
    return "int8" if settings.get("load_in_8bit") else None


def scales_of(parameter: Any) -> Iterator[Tensor]:
    """The scales that bitsandbytes keeps beside a packed parameter; none for any other."""
    state = getattr(parameter, "quant_state", None)  # of 4 bits
    while state is not None:
        if isinstance(getattr(state, "absmax", None), Tensor):
            yield state.absmax
        state = getattr(state, "state2", None)  # the scales of the scales
    if isinstance(scales := getattr(parameter, "SCB", None), Tensor):  # of 8 bits
        yield scales


def weights_in_each(parameter: Any) -> int:
    """How many weights one element of a parameter's storage holds: 1, and more where 4 bits are packed."""
    return 2 * int(parameter.element_size()) if type(parameter).__name__ == "Params4bit" else 1


def keep_trainable(model: Any) -> None:
    """
    Keeps bitsandbytes from repacking a layer's weights at its first forward without gradient.

    It does so for good on a CPU with AVX512-BF16, and from then on no gradient passes the layer: scoring a student
    would end its training.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def forget_packing(model: Any) -> None:
    """Takes the marks of packed weights, which keep a model from being saved, off one whose weights were unpacked."""
    model.hf_quantizer = None
    del model.config.quantization_config


@contextmanager
def saving_given_weights(model: Any) -> Iterator[None]:
    """Within, Transformers saves the weights that it is given: of a quantised model it would save its own instead."""
    quantizer = getattr(model, "hf_quantizer", None)
    try:
        model.hf_quantizer = None
        yield
    finally:
        model.hf_quantizer = quantizer
