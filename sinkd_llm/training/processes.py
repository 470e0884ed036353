"""The processes of a launch: how many were started, whether they find each other, and what they can share out."""

import os
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
from accelerate import PartialState

from sinkd_llm.errors import InputError
from sinkd_llm.models.wrappers import unwrap

if TYPE_CHECKING:
    from transformers import TrainingArguments


def launched_processes() -> int:
    """The processes that torchrun, accelerate or deepspeed started, this one among them; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE") or 1)


def use_cpus_if_alone(args: "TrainingArguments") -> None:
    """
    Put a launch on a machine without devices on its CPUs: accelerate would take each process for the only one.

    Args:
        args (`TrainingArguments`): as they were given; `use_cpu` is set where that is so.
    """
    if launched_processes() > 1 and not torch.accelerator.is_available():
        args.use_cpu = True


def check_launch(args: "TrainingArguments") -> None:
    """
    Check that the processes of a launch have found each other.

    Args:
        args (`TrainingArguments`): as Transformers has completed them.

    Raises:
        InputError: if each would train by itself.
    """
    launched = launched_processes()
    if launched > 1 and args.world_size == 1:
        raise InputError(
            f"The launcher started {launched} processes, but accelerate found no devices that can talk to each "
            "other, so each would train by itself; add --use_cpu true, or start one process."
        )


def start_cpu_group(args: "TrainingArguments") -> None:
    """
    Start the process group of a launch on CPUs, where Transformers does not pass `ddp_timeout` on: a process that
    hangs would never be missed. A group that stands already is taken as it is.

    Args:
        args (`TrainingArguments`): `use_cpu`, `ddp_backend` and `ddp_timeout` (seconds) are read.
    """
    if args.use_cpu and launched_processes() > 1 and not torch.distributed.is_initialized():
        PartialState(cpu=True, backend=args.ddp_backend, timeout=timedelta(seconds=args.ddp_timeout))


def check_fsdp(plugin: Any, student: Any) -> None:
    """
    Refuses what FSDP cannot shard here.

    Args:
        plugin (`FullyShardedDataParallelPlugin`, *optional*): accelerate's; `None` without FSDP.
        student (`PreTrainedModel` or `PeftModel`): the student.

    Raises:
        InputError: for FSDP1, and for an encoder-decoder, whose encoder, decoder and head share one embedding:
            accelerate puts it into several groups, which torch refuses in the first step.
    """
    if plugin is None:
        return
    if plugin.fsdp_version != 2:
        raise InputError(
            "This is an FSDP1 launch, whose flat parameters can be neither scored nor saved here; set "
            "fsdp_version: 2, as in ds_configs/fsdp2.yaml."
        )
    if unwrap(student).config.is_encoder_decoder:
        raise InputError(
            f"FSDP2 cannot shard the embedding that the encoder, decoder and head of {type(unwrap(student)).__name__} "
            "share; launch with ds_configs/zero3.yaml, or ddp.yaml."
        )
