"""What a run would need, counted without its weights: the memory of a step, and of a device in each set-up."""

from sinkd_llm.memory.device import (
    QUANTISATIONS,
    SETUPS,
    TEACHER_PLACES,
    DeviceMemory,
    ModelSize,
    device_memory,
    model_size,
    optimizer_bytes,
)
from sinkd_llm.memory.step import NotCountedError, StepMemory, trace_step

__all__ = [
    "QUANTISATIONS",
    "SETUPS",
    "TEACHER_PLACES",
    "DeviceMemory",
    "ModelSize",
    "NotCountedError",
    "StepMemory",
    "device_memory",
    "model_size",
    "optimizer_bytes",
    "trace_step",
]
