"""The arguments of loading by name, where they come as a mapping: from a recipe, a flag, or TRL's way of old."""

from collections.abc import Mapping
from typing import Any

import torch

from sinkd_llm.errors import InputError, nearest

DTYPES = ("auto", "bfloat16", "float16", "float32")
# What may stand in `model_init_kwargs` and `teacher_model_init_kwargs`; arguments of `load_model`.
LOADING_OPTIONS = (
    *("revision", "dtype", "quantization_config", "attn_implementation", "device_map", "trust_remote_code"),
    *("merge_adapter", "kind", "labels", "probe"),
)


def dtype_name(dtype: str | torch.dtype) -> str:
    """`dtype` as one of [`DTYPES`]."""
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise InputError(f"There is no dtype {name!r}; give one of {', '.join(DTYPES)}.{nearest(name, DTYPES)}")
    return name


def check_attention(name: str | None) -> None:
    """
    Makes sure that an `attn_implementation` is one that Transformers has, or a kernel on the model hub.

    Raises:
        InputError: naming those that there are.
    """
    if name is None:
        return
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    known = ["eager", *ALL_ATTENTION_FUNCTIONS.valid_keys()]
    if isinstance(name, str) and (name.removeprefix("paged|") in known or name in known or "/" in name):
        return
    raise InputError(
        f"attn_implementation is {name!r}, which is no way that Transformers computes attention; give one of "
        f"{', '.join(known)}, or leave it out.{nearest(str(name), known)}"
    )


def dtype_from(dtype: str | torch.dtype | None, other: Mapping[str, Any]) -> str:
    """
    The name of the dtype that is asked for, by `dtype` or by the older word `torch_dtype` among `other` arguments.

    Raises:
        InputError: if there is no such dtype, the two differ, or `other` has an argument that loading does not take.
    """
    if unknown := sorted(str(name) for name in other if name != "torch_dtype"):
        raise InputError(
            f"Loading a model takes no argument {unknown[0]!r}; it takes {', '.join(LOADING_OPTIONS)}."
            f"{nearest(unknown[0], LOADING_OPTIONS)}"
        )
    older = other.get("torch_dtype")
    if older is None:
        return dtype_name("float32" if dtype is None else dtype)
    if dtype is not None and dtype_name(dtype) != dtype_name(older):
        raise InputError(
            f"Both dtype ({dtype_name(dtype)}) and torch_dtype ({dtype_name(older)}), an older word for it, are "
            "given; give dtype alone."
        )
    return dtype_name(older)
