"""What the transport terms will cost an update, said before the first one.

A prediction of counts times speeds. The counts are of the run's own rows and settings; the speeds are measured on the
run's device, on small pieces of the same work:

    SinKD     = sum_p n_p^2 V / R * cost speed  +  sum_p n_p^2 * solver speed      over the problems p of n_p rows
    transported = sum_p n_p^2 4 V / R * speed of matrix products  +  sum_p n_p^2 * coupling speed
    the rest  = (2 B + 2 B + 2 B_trained) * tokens + (2 H + 2 H + 2 H_trained) * rows, likewise of the teacher without
                its backward pass, * speed of matrix products

B and H are the weights of a model's body and head, R the devices that share a problem: each computes the costs of its
own rows and solves the whole problem. Attention's products of positions with positions, the optimizer and what is not
a matrix product are left out, so the share of transport is rather too large than too small.

Shapes: B rows of a batch, N supervised tokens, V entries of a distribution.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from math import prod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from sinkd_llm.models import count_parameters
from sinkd_llm.models.kinds import IGNORE_INDEX, TEACHER, output_size
from sinkd_llm.models.partitioning import whole_shape
from sinkd_llm.models.wrappers import unwrap
from sinkd_llm.objectives import GROUP, TopKSignal, TransportSettings
from sinkd_llm.objectives.problems import Problems
from sinkd_llm.teachers.contract import GROUP_NUMBER
from sinkd_llm.terminal import say
from sinkd_llm.training.grouped_rows import whole_groups
from sinkd_llm.training.speeds import measured_speeds
from sinkd_llm.units import format_bytes, format_duration

if TYPE_CHECKING:
    from sinkd_llm.training.trainer import SinKDTrainer

logger = logging.getLogger(__name__)

# A larger share of an update is warned of.
LARGE_SHARE = 0.2
# Micro-batches that the prediction is the mean of.
_SAMPLED = 4
_FP32_BYTES = 4


@dataclass(frozen=True)
class TransportCounts:
    """
    The work of a transport term in one update of one device.

    Attributes:
        rows (`float`): N, the supervised tokens of a transport problem's devices and micro-batches.
        entries (`float`): `sum_p n_p^2`, the entries of the cost matrices, all of an update.
        largest (`int`): the most rows of a problem.
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
    groups: Sequence[Tensor] | None = None,
) -> TransportCounts:
    """
    Counts the transport problems of an update and their entries.

    Args:
        batches (sequence of `Tensor`): sampled micro-batches of one device: integers `[B]`, the supervised tokens of
            each row.
        settings ([`TransportSettings`]): scope and size of a problem.
        devices (`int`, *optional*, defaults to `1`): devices that share a problem.
        joined (`int`, *optional*, defaults to `1`): micro-batches that share a problem.
        alone (`int`, *optional*, defaults to `1`): problems of an update that share no row.
        groups (sequence of `Tensor`, *optional*): for the scope `"group"`, the group of each row, `[B]` each.

    Returns:
        [`TransportCounts`]: the means over `batches`, but for `largest` and `matrices`, which are maxima.
    """
    rows = entries = 0.0
    largest = matrices = 0
    for i, tokens_B in enumerate(batches):
        if settings.transport_scope == GROUP:
            assert groups is not None
            N = int(tokens_B.sum())
            # Where the teacher speaks of fewer rows, the first ones stand for them: groups are of like sizes.
            problems = Problems.of(groups[i][: len(tokens_B)].repeat_interleave(tokens_B), N)
        else:
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
    total, trained = count_parameters(model, adapters=True)
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
        counts ([`TransportCounts`]): of a transport term.
        transport (`float`): seconds of the transport terms.
        others (`float`): seconds of the models.
        memory (`int`): most bytes that the transport terms hold at once.
    """

    counts: TransportCounts
    transport: float
    others: float
    memory: int

    @property
    def share(self) -> float:
        """The transport terms' share of an update, in [0, 1]."""
        return self.transport / max(self.transport + self.others, 1e-12)


def predict(trainer: "SinKDTrainer") -> Prediction:
    """The prediction for a trainer's next update, from rows spread evenly over its training rows."""
    args, objective, teacher = trainer.args, trainer.forward.objective, trainer.teacher
    settings, transported = objective.transport_settings, objective.transported_settings
    assert teacher is not None
    batches = list(_sampled_batches(trainer))
    if teacher.over_choices:  # a row each, of which the teacher has something to say
        answers = [torch.ones(teacher.count(batch), dtype=torch.long) for batch in batches]
    else:
        answers = [(batch["labels"] != IGNORE_INDEX).reshape(len(batch["labels"]), -1).sum(dim=1) for batch in batches]
    spans = objective.spans
    devices = trainer.forward.ranks.count if spans and trainer.forward.ranks is not None else 1
    steps = args.gradient_accumulation_steps
    joined = steps if spans and args.transport_accumulation else 1
    counts = count_transport(
        answers,
        settings,
        devices=devices,
        joined=joined,
        alone=steps // joined,
        groups=[batch[GROUP_NUMBER] for batch in batches] if settings.transport_scope == GROUP else None,
    )
    V = _ids(trainer, batches[0])
    student: Any = trainer.model
    config = unwrap(student).config
    speeds = measured_speeds(
        args.device,
        _product_dtype(student, args),
        settings,
        counts.largest,
        V,
        getattr(config, "hidden_size", 512),
        transported,
    )
    transport, memory = 0.0, 0
    if objective.sinkhorn_weight > 0:
        transport, memory = counts.entries * (V / devices * speeds.cost + speeds.solver), counts.matrices
    if transported is not None:
        # Two products of two operations an entry and id: the cost, and its gradient.
        transport += counts.entries * (4 * V / devices * speeds.product + speeds.coupling)
        memory += counts.matrices
    rows = counts.rows / devices
    unpadded = args.packing or str(args.train_sampling_strategy) == "group_by_length"
    read = steps * sum(_tokens(batch, unpadded) for batch in batches) / len(batches)
    flops = product_flops(student, read, rows, trains=True, recomputes=bool(args.gradient_checkpointing))
    if teacher.model is not None:
        read = steps * sum(_tokens(batch.get(TEACHER, batch), unpadded) for batch in batches) / len(batches)
        flops += product_flops(teacher.model, read, rows, trains=False)
    return Prediction(counts, transport, flops * speeds.product, memory)


def _sampled_batches(trainer: "SinKDTrainer") -> Iterable[Mapping[str, Any]]:
    rows: Any = trainer.train_dataset
    size = trainer.args.per_device_train_batch_size
    if trainer.forward.objective.transport_scope == GROUP:
        order = [*islice(whole_groups(rows, size, trainer.args.sample_seed), _SAMPLED * size)]
        for at in range(0, len(order), size):
            yield trainer.data_collator([rows[index] for index in order[at : at + size] if index < len(rows)])
        return
    size = min(size, len(rows))
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
    """Says before the first update what the transport terms will take, and warns where they are much of an update."""

    def __init__(self, trainer: "SinKDTrainer") -> None:
        self._trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The first process predicts and speaks; the others have as much to do."""
        trainer = self._trainer
        if trainer.teacher is None or not trainer.forward.objective.transports or not state.is_world_process_zero:
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
    ways = ["smaller groups of rows" if args.transport_scope == GROUP else smaller]
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
