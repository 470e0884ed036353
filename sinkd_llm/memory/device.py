"""From a step's memory to a device's memory: what each set-up replicates, divides by n, or moves to the host.

The set-ups are as in ZeRO (Rajbhandari et al., arXiv:1910.02054, section 3 and figure 1). For T trained parameters
of g bytes, weights of W bytes and an optimizer of K bytes a trained parameter, a device of n holds

    none              W  +  g  (2 g for n > 1: DDP's buckets are a second copy)  +  K T
    zero1             W  +  g                                                    +  K T / n
    zero2             W  +  g / n  +  bucket                                     +  K T / n
    zero3             W / n + gathered  +  g / n  +  bucket                      +  K T / n
    zero3_offload     gathered  +  bucket;  the host  W + g + K T

K is two moments in the parameter's type (AdamW); under DeepSpeed two in fp32, and 4 bytes for the fp32 copy of a
trained weight: 12, as in the paper. `gathered` are the whole weights that stage 3 keeps at a time, `bucket` the
gradients on their way.
"""

from dataclasses import dataclass
from typing import Any

from torch import nn

from sinkd_llm.memory.step import StepMemory
from sinkd_llm.models.adapter_facts import adapter_parameters

SETUPS = ("none", "zero1", "zero2", "zero3", "zero3_offload")
TEACHER_PLACES = ("replicate", "shard", "offload", "cache")
QUANTISATIONS = ("none", "8bit", "4bit")

# DeepSpeed's default `stage3_max_live_parameters`.
_MAX_LIVE_PARAMETERS = 10**9
# A device counts as large enough if the estimate is at most this share of it: the CUDA context, fragmentation and the
# estimate's own error need the rest.
USABLE_SHARE = 0.9


@dataclass(frozen=True)
class ModelSize:
    """
    A model's parameters and their bytes; tied ones count once.

    Attributes:
        parameters, trained (`int`): numbers of parameters, as [`~sinkd_llm.models.count_parameters`] gives them.
        weights, trained_weights (`int`): bytes of all and of the trained ones.
        width (`int`): the hidden size h. `reduce_bucket_size: auto` is h^2 parameters.
    """

    parameters: int
    trained: int
    weights: int
    trained_weights: int
    width: int = 0


def model_size(
    model: nn.Module, quantisation: str = "none", *, nested: bool = False, bytes_each: int | None = None
) -> ModelSize:
    """
    Parameters and bytes of a model on the meta device, as it will be after loading.

    bitsandbytes packs the linear layers and leaves embeddings, norms and the head. NF4 keeps half a byte a weight and
    an fp32 scale for 64 of them; with `nested`, the scales in 8 bits and an fp32 number for 256 of those (QLoRA,
    arXiv:2305.14314, section 3). LLM.int8() keeps a byte a weight and an fp32 scale a row (arXiv:2208.07339).

    Args:
        model (`nn.Module`): trained are the parameters with `requires_grad`.
        quantisation (`str`, *optional*, defaults to `"none"`): `"none"`, `"8bit"` or `"4bit"`.
        nested (`bool`, *optional*, defaults to `False`): quantise the scales of NF4 too.
        bytes_each (`int`, *optional*): bytes of a parameter that is not packed. Default: the bytes of its dtype.
    """
    packed = _packed_weights(model) if quantisation != "none" else {}
    total = trained = weights = trained_weights = 0
    beside = adapter_parameters(model)
    for parameter in model.parameters():
        count = parameter.numel()
        if id(parameter) in packed:
            if quantisation == "4bit":
                size = count * (0.5 + (1 / 64 + 4 / (64 * 256) if nested else 4 / 64))
            else:
                size = count + 4 * packed[id(parameter)]
        else:
            size = count * (bytes_each or parameter.element_size())
        total += 0 if id(parameter) in beside else count
        weights += int(size)
        if parameter.requires_grad:
            trained, trained_weights = trained + count, trained_weights + int(size)
    weights += sum(buffer.numel() * buffer.element_size() for buffer in model.buffers())
    width = getattr(getattr(model, "config", None), "hidden_size", 0)
    return ModelSize(total, trained, weights, trained_weights, width)


def _packed_weights(model: Any) -> dict[int, int]:
    """Identity of each weight that bitsandbytes packs, and its rows."""
    from transformers.pytorch_utils import Conv1D

    from sinkd_llm.models.wrappers import unwrap

    inner = unwrap(model)
    kept = {id(m.weight) for m in (inner.get_input_embeddings(), inner.get_output_embeddings()) if m is not None}
    packed = {}
    for name, module in inner.named_modules():
        if isinstance(module, nn.Linear | Conv1D) and id(module.weight) not in kept and "lora_" not in name:
            packed[id(module.weight)] = module.weight.shape[0]
    return packed


def optimizer_bytes(optim: str) -> float:
    """
    Bytes a trained fp32 parameter of the optimizer that `TrainingArguments.optim` names.

    8 for AdamW and what is not known here, 2 for its 8-bit forms (arXiv:2110.02861), 0 for plain SGD, and 0 for
    Adafactor, which keeps a row and a column of numbers for a matrix (arXiv:1804.04235).
    """
    if "8bit" in optim:
        return 2
    if optim.startswith(("adafactor", "sgd")):
        return 0
    return 4 if optim.startswith(("lion", "rmsprop", "adagrad")) else 8


@dataclass(frozen=True)
class DeviceMemory:
    """
    Bytes that one device, and the host of all n, hold at the peak of training.

    Attributes:
        weights, gradients, optimizer, step, teacher (`int`): the parts. `step` is what a micro-batch holds at its
            peak: activations, the teacher's, logits and transport.
        total (`int`): less than the sum of the parts where gradients come as activations go.
        host (`int`): bytes in the machine's own memory, of all its devices together.
    """

    weights: int
    gradients: int
    optimizer: int
    step: int
    teacher: int
    total: int
    host: int = 0

    def fits(self, memory: int) -> bool:
        """Whether a device of `memory` bytes has room for it; see `USABLE_SHARE`."""
        return self.total <= USABLE_SHARE * memory


def device_memory(
    setup: str,
    devices: int,
    student: ModelSize,
    teacher: ModelSize | None,
    step: StepMemory,
    *,
    teacher_place: str | None = None,
    optimizer: float = 8,
    accumulation: int = 1,
) -> DeviceMemory:
    """
    What one of `devices` holds in a set-up.

    Args:
        setup (`str`): one of `SETUPS`; the formulas stand at the top of this file.
        devices (`int`): n, the devices that data-parallel training runs on.
        student, teacher ([`ModelSize`]): the two models; no teacher for fine-tuning.
        step ([`StepMemory`]): of one micro-batch.
        teacher_place (`str`, *optional*): one of `TEACHER_PLACES`. Default: as with `teacher_deepspeed: auto`, which
            shards the teacher of a sharded student and replicates any other.
        optimizer (`float`, *optional*, defaults to `8`): see [`optimizer_bytes`].
        accumulation (`int`, *optional*, defaults to `1`): micro-batches of an update; above 1 the gradients of the
            earlier ones are there while the next one runs.
    """
    n, trained = devices, student.trained
    gradient = student.trained_weights
    place = teacher_place or ("shard" if setup in ("zero3", "zero3_offload") else "replicate")
    deepspeed = setup != "none"
    # Twice: with `overlap_comm` one fills while the other is on its way.
    bucket = 2 * _share(gradient, trained, student.width**2) if deepspeed and n > 1 else 0
    # Without DeepSpeed the moments have the parameter's type; with it all of the optimizer is fp32.
    moments = int((optimizer + 4) * trained if deepspeed else optimizer / 4 * gradient)
    host = 0
    if setup == "zero3_offload":
        weights, gradients, states = _gathered(student), bucket, 0
        host += student.weights + gradient + moments
    else:
        weights = student.weights // n + _gathered(student) if setup == "zero3" else student.weights
        divided = setup in ("zero2", "zero3")
        gradients = gradient // n + bucket if divided else gradient + (gradient if n > 1 and not deepspeed else bucket)
        states = moments // n if deepspeed else moments
    teacher_weights = 0
    if teacher is not None:
        if place == "replicate":
            teacher_weights = teacher.weights
        elif place in ("shard", "offload"):
            teacher_weights = _gathered(teacher) + (teacher.weights // n if place == "shard" else 0)
            host += teacher.weights if place == "offload" else 0
    in_step = step.peak if place != "cache" else max(step.forward_peak, step.peak - step.teacher + step.loss)
    together = in_step + gradients
    if accumulation == 1 and setup in ("none", "zero1"):
        extra = gradients - gradient  # buckets are there all the time
        together = max(in_step, step.peak_with_gradients if place != "cache" else in_step, gradient) + extra
    total = weights + states + teacher_weights + together
    return DeviceMemory(weights, gradients, states, in_step, teacher_weights, total, host)


def _gathered(model: ModelSize) -> int:
    return _share(model.weights, model.parameters, _MAX_LIVE_PARAMETERS)


def _share(size: int, count: int, limit: int) -> int:
    """Bytes of at most `limit` of `count` parameters that take `size` bytes together."""
    return int(size * min(1.0, limit / count)) if count else 0
