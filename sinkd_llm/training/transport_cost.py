"""What the transport term will cost an update, said before the first one.

A prediction of counts times speeds. The counts are of the run's own rows and settings; the speeds are measured on the
run's device, on small pieces of the same work:

    transport = sum_p n_p^2 V / R * cost speed  +  sum_p n_p^2 * solver speed      over the groups p of n_p rows
    the rest  = (2 B + 2 B + 2 B_trained) * tokens + (2 H + 2 H + 2 H_trained) * rows, likewise of the teacher without
                its backward pass, * speed of matrix products

B and H are the weights of a model's body and head, R the devices that share a problem: each computes the costs of its
own rows and solves the whole problem. Attention's products of positions with positions, the optimizer and what is not
a matrix product are left out, so the share of transport is rather too large than too small.

Shapes: B rows of a batch, N supervised tokens, V entries of a distribution.
"""

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from math import prod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from sinkd_llm.models import count_parameters
from sinkd_llm.models.kinds import IGNORE_INDEX, TEACHER, output_size
from sinkd_llm.models.partitioning import whole_shape
from sinkd_llm.models.wrappers import unwrap
from sinkd_llm.objectives import TopKSignal, TransportSettings
from sinkd_llm.objectives.problems import Problems
from sinkd_llm.optimal_transport import pairwise_cost
from sinkd_llm.terminal import say
from sinkd_llm.units import format_bytes, format_duration

if TYPE_CHECKING:
    from sinkd_llm.training.trainer import SinKDTrainer

logger = logging.getLogger(__name__)

# A larger share of an update is warned of.
LARGE_SHARE = 0.2
# Micro-batches that the prediction is the mean of.
_SAMPLED = 4
# A probe is repeated until it has taken so long.
_PROBE_SECONDS = 0.01
# Rows and columns of the probe of the cost: on a CPU a few ms, on a GPU enough to keep it busy.
_CPU_PROBE, _GPU_PROBE = (64, 4096), (256, 8192)
_FP32_BYTES = 4


@dataclass(frozen=True)
class TransportCounts:
    """
    The work of the transport term in one update of one device.

    Attributes:
        rows (`float`): N, the supervised tokens of a transport problem's devices and micro-batches.
        entries (`float`): `sum_p n_p^2`, the entries of the cost matrices, all of an update.
        largest (`int`): the most rows of a group.
        matrices (`int`): most bytes of cost matrices at once: the cost, its kernel, the plan and the gradient.
    """

    rows: float
    entries: float
    largest: int
    matrices: int


def count_transport(
    batches: Sequence[Tensor],
    settings: TransportSettings,
    *,
    devices: int = 1,
    joined: int = 1,
    alone: int = 1,
) -> TransportCounts:
    """
    Counts the groups of an update and their entries.

    Args:
        batches (sequence of `Tensor`): sampled micro-batches of one device: integers `[B]`, the supervised tokens of
            each row.
        settings ([`TransportSettings`]): scope and size of a group.
        devices (`int`, *optional*, defaults to `1`): devices that share a problem.
        joined (`int`, *optional*, defaults to `1`): micro-batches that share a problem.
        alone (`int`, *optional*, defaults to `1`): problems of an update that share no row.

    Returns:
        [`TransportCounts`]: the means over `batches`, but for `largest` and `matrices`, which are maxima.
    """
    rows = entries = 0.0
    largest = matrices = 0
    for tokens_B in batches:
        key_N, N = _problem_of_each(tokens_B.repeat(devices * joined), settings.transport_scope)
        problems = Problems.of(key_N, N, settings.transport_group_size)
        squares = sum(P * R**2 for P, R in problems.blocks)
        rows, entries = rows + alone * N, entries + alone * squares
        largest, matrices = max(largest, problems.largest), max(matrices, 4 * _FP32_BYTES * squares)
    count = max(len(batches), 1)
    return TransportCounts(rows / count, entries / count, largest, matrices)


def _problem_of_each(tokens_B: Tensor, scope: str) -> tuple[Tensor | None, int]:
    """Which problem each supervised token is part of (`None`: all of one), and how many tokens there are."""
    example_N = torch.arange(len(tokens_B)).repeat_interleave(tokens_B)
    if scope == "position":
        return torch.cat([torch.arange(tokens) for tokens in tokens_B.tolist()]), len(example_N)
    return example_N if scope == "sequence" else None, len(example_N)


@dataclass(frozen=True)
class Speeds:
    """
    What was measured on a device.

    Attributes:
        cost (`float`): seconds of one entry of the cost and one id, forward and backward.
        solver (`float`): seconds of one entry of the cost in the solver, forward and backward.
        product (`float`): seconds of one floating-point operation in a matrix product.
    """

    cost: float
    solver: float
    product: float


@cache
def measured_speeds(
    device: torch.device, dtype: torch.dtype, settings: TransportSettings, largest: int, V: int, width: int
) -> Speeds:
    """
    Measures the three speeds in some tens of milliseconds; each combination of arguments once a process.

    No random number is drawn, so that a run draws the same ones with and without a transport term.

    Args:
        device (`torch.device`): where the run computes.
        dtype (`torch.dtype`): of its matrix products.
        settings ([`TransportSettings`]): of the solver and the cost.
        largest (`int`): rows of the largest group.
        V (`int`): ids of a distribution.
        width (`int`): features of a hidden state.
    """
    most_rows, most_ids = _CPU_PROBE if device.type == "cpu" else _GPU_PROBE
    R, ids, width = max(2, min(largest, most_rows)), max(2, min(V, most_ids)), max(width, 1)
    # Several problems where they are small: what an operator call takes by itself is not what is asked for.
    P = max(1, 2**18 // (R**2 * ids))
    rows_PRV = torch.softmax(torch.arange(P * R * ids, device=device).view(P, R, ids).sin(), dim=-1)
    student_PRV = rows_PRV.clone().requires_grad_()

    def cost() -> Any:
        return pairwise_cost(student_PRV, rows_PRV, settings.cost_norm).sum().backward()

    n = max(2, min(largest, 256))
    cost_Pnn = torch.arange(max(1, 2**16 // n**2) * n**2, device=device).view(-1, n, n).sin().abs().requires_grad_()

    def solver() -> Any:
        return settings.solve([cost_Pnn]).cost(cost_Pnn.new_zeros(())).backward()

    left, right = (torch.ones(shape, device=device, dtype=dtype) for shape in ((256, width), (width, 4 * width)))
    return Speeds(
        cost=_seconds(cost, device) / (P * R * R * ids),
        solver=_seconds(solver, device) / cost_Pnn.numel(),
        product=_seconds(lambda: left @ right, device) / (2 * 256 * width * 4 * width),
    )


def _seconds(work: Callable[[], Any], device: torch.device) -> float:
    """Seconds of one call, after one that does not count."""
    _finished(work, device)
    started, calls, elapsed = time.perf_counter(), 0, 0.0
    while elapsed < _PROBE_SECONDS:
        _finished(work, device)
        calls += 1
        elapsed = time.perf_counter() - started
    return elapsed / calls


def _finished(work: Callable[[], Any], device: torch.device) -> None:
    work()
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def product_flops(model: nn.Module, tokens: float, rows: float, *, trains: bool, recomputes: bool = False) -> float:
    """
    Floating-point operations of the matrix products with a model's weights: two a weight, token and product.

    Args:
        model (`nn.Module`): possibly wrapped.
        tokens (`float`): tokens that its body reads.
        rows (`float`): tokens that its head reads.
        trains (`bool`): there is a backward pass: a product for the inputs, and one for each weight that is trained.
        recomputes (`bool`, *optional*, defaults to `False`): the backward pass runs the body again (checkpointing).
    """
    total, trained = count_parameters(model)
    inner = unwrap(model)
    head, head_trained = _size(inner.get_output_embeddings())
    table, table_trained = _size(inner.get_input_embeddings())
    # A table is looked up. One that is the head's weight as well is counted once.
    tied = _weight(inner.get_output_embeddings()) is _weight(inner.get_input_embeddings())
    body = total - table - (0 if tied else head)
    body_trained = trained - table_trained - (0 if tied else head_trained)
    products = 2 + recomputes if trains else 1
    flops = 2 * products * body * tokens + 2 * (2 if trains else 1) * head * rows
    return flops + (2 * (body_trained * tokens + head_trained * rows) if trains else 0)


def _weight(module: Any) -> Any:
    return getattr(module, "weight", None)


def _size(module: Any) -> tuple[int, int]:
    """Numbers of all and of trained parameters of a module's weight; 0 without one."""
    weight = _weight(module)
    size = 0 if weight is None else prod(whole_shape(weight))
    return size, size if size and weight.requires_grad else 0


@dataclass(frozen=True)
class Prediction:
    """
    What an update of one device takes, about.

    Attributes:
        counts ([`TransportCounts`]): of the transport term.
        transport (`float`): seconds of the transport term.
        others (`float`): seconds of the models.
        memory (`int`): most bytes that the transport term holds at once.
    """

    counts: TransportCounts
    transport: float
    others: float
    memory: int

    @property
    def share(self) -> float:
        """The transport term's share of an update, in [0, 1]."""
        return self.transport / max(self.transport + self.others, 1e-12)


def predict(trainer: "SinKDTrainer") -> Prediction:
    """The prediction for a trainer's next update, from rows spread evenly over its training rows."""
    args, settings, teacher = trainer.args, trainer.forward.objective.transport_settings, trainer.teacher
    assert teacher is not None
    batches = list(_sampled_batches(trainer))
    if teacher.over_choices:  # a row each, of which the teacher has something to say
        answers = [torch.ones(teacher.count(batch), dtype=torch.long) for batch in batches]
    else:
        answers = [(batch["labels"] != IGNORE_INDEX).reshape(len(batch["labels"]), -1).sum(dim=1) for batch in batches]
    spans = trainer.forward.objective.spans
    devices = trainer.forward.ranks.count if spans and trainer.forward.ranks is not None else 1
    steps = args.gradient_accumulation_steps
    joined = steps if spans and args.transport_accumulation else 1
    counts = count_transport(
        answers,
        settings,
        devices=devices,
        joined=joined,
        alone=steps // joined,
    )
    V = _ids(trainer, batches[0])
    student: Any = trainer.model
    config = unwrap(student).config
    speeds = measured_speeds(
        args.device, _product_dtype(student, args), settings, counts.largest, V, getattr(config, "hidden_size", 512)
    )
    transport = counts.entries * (V / devices * speeds.cost + speeds.solver)
    rows = counts.rows / devices
    unpadded = args.packing or str(args.train_sampling_strategy) == "group_by_length"
    read = steps * sum(_tokens(batch, unpadded) for batch in batches) / len(batches)
    flops = product_flops(student, read, rows, trains=True, recomputes=bool(args.gradient_checkpointing))
    if teacher.model is not None:
        read = steps * sum(_tokens(batch.get(TEACHER, batch), unpadded) for batch in batches) / len(batches)
        flops += product_flops(teacher.model, read, rows, trains=False)
    return Prediction(counts, transport, flops * speeds.product, counts.matrices)


def _sampled_batches(trainer: "SinKDTrainer") -> Iterable[Mapping[str, Any]]:
    rows: Any = trainer.train_dataset
    size = min(trainer.args.per_device_train_batch_size, len(rows))
    count = min(_SAMPLED, len(rows) // size)
    for batch in range(count):
        # Every count-th row, so that rows in the order of their lengths are met alike.
        indices = [(row * count + batch) * len(rows) // (size * count) for row in range(size)]
        yield trainer.data_collator([rows[index] for index in indices])


def _tokens(batch: Mapping[str, Any], unpadded: bool) -> int:
    """Tokens that a model reads of a batch: padding, too, unless rows are packed or of one length."""
    ids = batch["input_ids"]
    return int(batch["attention_mask"].sum()) if unpadded and "attention_mask" in batch else ids.numel()


def _ids(trainer: "SinKDTrainer", batch: Mapping[str, Any]) -> int:
    """V: the entries of the distributions that the cost compares."""
    teacher = trainer.teacher
    assert teacher is not None
    if teacher.over_choices:
        return max(len(tree.choices) for tree in batch["trees"])
    if trainer.forward.objective.vocabulary == "verbalizers" and trainer.verbalizer_ids is not None:
        return len(trainer.verbalizer_ids)
    if teacher.model is None and isinstance(signal := teacher.signal(batch).signal, TopKSignal):
        return signal.ids_NK.shape[1] + 1
    return min(teacher.outputs, output_size(trainer.model))  # type: ignore[arg-type]


def _product_dtype(student: nn.Module, args: Any) -> torch.dtype:
    if args.bf16 or args.fp16:
        return torch.bfloat16 if args.bf16 else torch.float16
    return next((p.dtype for p in student.parameters() if p.is_floating_point()), torch.float32)


class SayTransportCost(TrainerCallback):
    """Says before the first update what the transport term will take, and warns where it is much of an update."""

    def __init__(self, trainer: "SinKDTrainer") -> None:
        self._trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The first process predicts and speaks; the others have as much to do."""
        trainer = self._trainer
        if (
            trainer.teacher is None
            or trainer.forward.objective.sinkhorn_weight == 0
            or not state.is_world_process_zero
        ):
            return
        prediction = predict(trainer)
        say(_described(prediction, "rows" if trainer.teacher.over_choices else "supervised tokens"))
        if prediction.share > LARGE_SHARE:
            logger.warning(_advice(prediction, args))


def _described(prediction: Prediction, rows: str) -> str:
    counts, update = prediction.counts, prediction.transport + prediction.others
    return (
        f"Transport takes {_seconds_in_words(prediction.transport)} of an update of {_seconds_in_words(update)}, "
        f"and about {format_bytes(prediction.memory)}: about {counts.rows:.0f} {rows} in groups of "
        f"at most {counts.largest}."
    )


def _advice(prediction: Prediction, args: Any) -> str:
    size = args.transport_group_size
    smaller = (
        f"a smaller transport_group_size (now {size})" if size else "a transport_group_size, such as 256 (now none)"
    )
    ways = [smaller]
    if args.transport_scope == "batch":
        ways.insert(0, "transport_scope position")
    if args.vocabulary == "full":
        ways.append("vocabulary verbalizers, for rows with answer choices")
    return (
        f"About {prediction.share:.0%} of the time of an update will be transport. To make it less, set "
        f"{', or '.join(ways)}."
    )


def _seconds_in_words(seconds: float) -> str:
    if seconds >= 10:
        return f"about {format_duration(seconds)}"
    if seconds < 5e-4:
        return "less than 1 ms"
    return f"about {seconds:.1f} s" if seconds >= 0.1 else f"about {seconds * 1000:.0f} ms"
