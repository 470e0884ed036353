"""Where a local teacher's weights lie when several processes train: whole, sharded, or sharded in CPU memory."""

import copy
from typing import TYPE_CHECKING, Any

from torch import nn

from sinkd_llm.errors import InputError
from sinkd_llm.models.quantisation import is_quantised

if TYPE_CHECKING:
    from accelerate import Accelerator

PLACEMENTS = ("auto", "replicate", "shard", "offload")

# Of the student's DeepSpeed settings, those that belong to training. DeepSpeed would build an optimizer from the
# first three; it checks the batch sizes against each other, and the teacher is called once a micro-batch, whatever
# the student accumulates.
_TRAINING_KEYS = ("optimizer", "scheduler", "gradient_clipping", "train_batch_size", "gradient_accumulation_steps")
_STAGE_3_SIZES = ("stage3_prefetch_bucket_size", "stage3_param_persistence_threshold", "reduce_bucket_size")


def teacher_engine_config(student_config: dict[str, Any], placement: str) -> dict[str, Any]:
    """
    DeepSpeed settings of a sharded teacher, made from the student's settings, which are not changed.

    Precision, communication and logging stay; everything about optimization goes. Sizes that are `"auto"` become
    DeepSpeed's defaults: Transformers would fill in the student's settings.

    Args:
        student_config (`dict`): a DeepSpeed configuration.
        placement (`str`): `"shard"`: parameters partitioned over the processes' devices (ZeRO stage 3);
            `"offload"`: the partitions lie in CPU memory and come to the device a layer at a time.
    """
    config = copy.deepcopy({key: value for key, value in student_config.items() if key not in _TRAINING_KEYS})
    zero = config.get("zero_optimization", {})
    kept = {k: v for k, v in zero.items() if k in _STAGE_3_SIZES or k.startswith("stage3_max_")}
    config["zero_optimization"] = {"stage": 3, **{k: v for k, v in kept.items() if v != "auto"}}
    if placement == "offload":
        pinned = zero.get("offload_param") or {}
        config["zero_optimization"]["offload_param"] = {"device": "cpu", "pin_memory": pinned.get("pin_memory", True)}
    micro = config.get("train_micro_batch_size_per_gpu")
    # Unused without an optimizer, but DeepSpeed refuses to start without it.
    config["train_micro_batch_size_per_gpu"] = micro if isinstance(micro, int) else 1
    return config


def resolve_placement(placement: str, zero_stage: int | None, fsdp: bool, quantised: bool) -> str:
    """
    `"replicate"`, `"shard"` or `"offload"`.

    `"auto"` follows the student: sharded under ZeRO-3 and FSDP, whole otherwise. A quantised teacher stays whole:
    its packed weights cannot be partitioned, and are a quarter or half of the size.

    Args:
        placement (`str`): one of `PLACEMENTS`.
        zero_stage (`int`, *optional*): DeepSpeed's stage for the student; `None` without DeepSpeed.
        fsdp (`bool`): whether the student is sharded by FSDP.
        quantised (`bool`): whether the teacher is in 4 or 8 bits.

    Raises:
        InputError: for a placement that this launch or this teacher cannot have.
    """
    if placement not in PLACEMENTS:
        raise InputError(f"There is no teacher_deepspeed {placement!r}; give one of {', '.join(PLACEMENTS)}.")
    if placement == "auto":
        return "shard" if (zero_stage == 3 or fsdp) and not quantised else "replicate"
    if placement == "replicate":
        return placement
    if quantised:
        raise InputError(
            f"teacher_deepspeed is {placement!r}, but the packed weights of a 4-bit or 8-bit teacher cannot be "
            "partitioned; leave it out, or load the teacher in bfloat16."
        )
    if zero_stage is None and (placement == "offload" or not fsdp):
        launch = "this is an FSDP launch" if fsdp else "this launch uses no DeepSpeed"
        raise InputError(
            f"teacher_deepspeed is {placement!r}, but {launch}; launch with a configuration of ds_configs/zero*.yaml, "
            "or leave it out."
        )
    return placement


def place_teacher(model: Any, accelerator: "Accelerator", placement: str) -> Any:
    """
    Puts a frozen teacher where `placement` says, and returns what to call instead of it.

    Args:
        model (`PreTrainedModel`): frozen, in eval mode.
        accelerator (`Accelerator`): the student's; its plugins say how the student is sharded.
        placement (`str`): one of `PLACEMENTS`, see [`resolve_placement`].

    Returns:
        `nn.Module`: the model itself on the device, or a DeepSpeed engine, or the model sharded in place by FSDP.
        A sharded one must be called by all processes at once.
    """
    deepspeed_plugin: Any = getattr(accelerator.state, "deepspeed_plugin", None)
    fsdp_plugin = getattr(accelerator.state, "fsdp_plugin", None)
    quantised = is_quantised(model)
    stage = deepspeed_plugin.zero_stage if deepspeed_plugin is not None else None
    placement = resolve_placement(placement, stage, fsdp_plugin is not None, quantised)
    if placement == "replicate":
        # bitsandbytes has put a quantised model on its device while loading it.
        return model if quantised else model.to(accelerator.device)
    if fsdp_plugin is not None:
        return _fully_shard(model, accelerator, fsdp_plugin)
    import deepspeed

    config = teacher_engine_config(deepspeed_plugin.deepspeed_config, placement)
    if accelerator.device.type == "cpu" and placement == "offload":
        config["zero_optimization"]["offload_param"]["pin_memory"] = False  # pinning is for copies to a GPU
    engine, *_ = deepspeed.initialize(model=model, config=config)
    engine.eval()  # returns nothing, other than nn.Module's
    return engine


def _fully_shard(model: nn.Module, accelerator: "Accelerator", plugin: Any) -> nn.Module:
    """FSDP2 in place, a unit per transformer layer. Accelerate would prepare a model only with its optimizer."""
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    mesh = getattr(accelerator, "torch_device_mesh", None)
    options = {
        "mesh": mesh[tuple(accelerator.parallelism_config.fsdp_dim_names)] if mesh is not None else None,
        "mp_policy": plugin.mixed_precision_policy or MixedPrecisionPolicy(),
        "offload_policy": plugin.cpu_offload,
    }
    layers = set(getattr(model, "_no_split_modules", None) or ())
    for module in [m for m in model.modules() if type(m).__name__ in layers]:
        fully_shard(module, reshard_after_forward=True, **options)
    fully_shard(model, **options)
    return model
