"""The gate for numbers: a run ends at the first loss term or gradient norm that is NaN or infinite.

It comes before the optimizer's step, so the weights are still the weights of the step before.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sinkd_llm.errors import InputError, NonFiniteError
from sinkd_llm.models.finite import check_finite_weights
from sinkd_llm.models.kinds import Kind
from sinkd_llm.models.kinds.over_choices import OverChoices
from sinkd_llm.models.partitioning import held_part, whole_value
from sinkd_llm.models.wrappers import unwrap

# Updates in a row that a loss scaler may skip. Each halves the scale, which starts at 2^16: after so many it is not
# the scale that overflows.
SKIPPED_AT_MOST = 40
_SHOWN = 5


class FiniteGate:
    """
    Collects the terms of an update's micro-batches on their device, and looks at all of them once.

    Args:
        scaled (`bool`): whether a loss scaler (float16) skips the updates whose gradients overflow. Their norms may
            then be infinite, but the terms may not: they are not scaled.
    """

    def __init__(self, scaled: bool = False) -> None:
        self.scaled = scaled
        self._terms: list[tuple[str, Tensor, Sequence[str]]] = []
        self._checks: list[Callable[[], None]] = []
        self._skipped = 0

    def add(
        self, terms: Mapping[str, Tensor], examples: Sequence[str], check: Callable[[], None] | None = None
    ) -> None:
        """
        Takes the terms of a micro-batch.

        Args:
            terms (`Mapping[str, Tensor]`): scalars by their names.
            examples (sequence of `str`): names of the rows that they were computed from.
            check (`Callable`, *optional*): raises if something beside the student is at fault; it is called only
                where a term of the update is not finite.
        """
        self._checks += [] if check is None else [check]
        self._terms += [(name, value.detach(), examples) for name, value in terms.items()]

    def look(self, step: int, grad_norm: Tensor | float | None, student: nn.Module, advice: Callable[[], str]) -> None:
        """
        Looks at the terms since the last look, and at the norm of their gradient. One wait for the device.

        Args:
            step (`int`): number of the update that is about to be made, from 1.
            grad_norm (`Tensor` or `float`, *optional*): `None` where it is not known.
            student (`nn.Module`): in which the reason is looked for if there is one to be found.
            advice (`Callable`): says how the run can go on, in a sentence.

        Raises:
            NonFiniteError: naming the step, the term and the examples.
            InputError: what `check` of a micro-batch raises.
        """
        terms, self._terms = self._terms, []
        checks, self._checks = self._checks, []
        values = [value for _, value, _ in terms]
        if grad_norm is not None:
            norm = whole_value(grad_norm)
            device = values[0].device if values else None
            values.append(torch.as_tensor(norm, dtype=torch.float32, device=device).detach())
        if not values:
            return
        numbers = torch.stack([value.float() for value in values])
        if numbers.isfinite().all():
            self._skipped = 0
            return
        given = numbers.tolist()
        finite = numbers.isfinite().tolist()
        for (name, _, examples), number, good in zip(terms, given, finite, strict=False):
            if not good:
                for check in checks:
                    check()
                self._refuse(step, f"the term {name!r} of the loss is {number}", examples, student, advice)
        if self.scaled:  # the scaler skips this update, and lowers the scale for the next
            self._skipped += 1
            if self._skipped <= SKIPPED_AT_MOST:
                return
        examples = [name for _, _, names in terms for name in names]
        self._refuse(step, f"the norm of the gradient is {given[-1]}", examples, student, advice)

    def _refuse(
        self, step: int, what: str, examples: Sequence[str], student: nn.Module, advice: Callable[[], str]
    ) -> None:
        raise NonFiniteError(
            f"Training stopped before update {step}: {what}, over the examples {shown(examples)}. "
            f"{_reason(student)} {advice()}"
        )


def check_sound(
    student: nn.Module,
    kind: Kind,
    batch: Mapping[str, Any] | None,
    together: Callable[[Tensor], Tensor] | None = None,
) -> None:
    """
    Refuses a student that must not be saved: with a weight that is not finite or without bounds, or with outputs that
    are not finite. That is also what the last update of a run may leave, which no later step would find.

    Args:
        student (`nn.Module`): as it is trained, perhaps wrapped.
        kind ([`Kind`]): of it.
        batch (`Mapping`, *optional*): a training batch, for one forward without gradient and without dropout.
        together (`Callable`, *optional*): makes one answer of the answers of all processes: the sum of a number.

    Raises:
        NonFiniteError: naming the weight, or the examples of the batch.
    """
    try:
        check_finite_weights(student, "student")
    except InputError as error:
        raise NonFiniteError(f"The student was not saved. {error}") from error
    if batch is None:
        return
    # A normalisation makes 0 of activations whose squares overflow, so the outputs of such weights look finite.
    device = batch["labels"].device
    norms = {name: _norm(p).to(device) for name, p in student.named_parameters() if p.requires_grad}
    finite = torch.stack(list(norms.values())).isfinite().tolist() if norms else []
    grown = next((name for name, good in zip(norms, finite, strict=True) if not good), None)
    found = torch.tensor(float(grown is not None), device=device)
    if (found if together is None else together(found)) > 0:
        raise NonFiniteError(
            f"The student was not saved: its weight {grown or '(of another process)'} has grown so large that its "
            "square is infinite. The last updates were too large; lower learning_rate, and go on from an earlier "
            "checkpoint."
        )
    was_training = student.training
    student.eval()
    try:
        with torch.no_grad():
            logits_NV = kind.supervised_rows(student, batch).logits_NV
            if isinstance(kind, OverChoices):  # where a row has fewer choices than another
                logits_NV = logits_NV.masked_fill(logits_NV.isneginf(), 0)
    finally:
        student.train(was_training)
    broken = (~logits_NV.isfinite().all()).float()
    if (broken if together is None else together(broken)) > 0:
        raise NonFiniteError(
            "The student was not saved: its weights are finite, but its outputs are NaN or infinite for the examples "
            f"{shown(names_of(batch))}. The last updates were too large; lower learning_rate, and go on from an "
            "earlier checkpoint."
        )


def _norm(parameter: Any) -> Tensor:
    """Euclidean norm of what this process holds of a parameter."""
    held = held_part(parameter)
    return torch.linalg.vector_norm(parameter.detach() if held is None else held, dtype=torch.float32)


def names_of(batch: Mapping[str, Any]) -> list[str]:
    """The names of a batch's examples, or their numbers in the batch where the collator gives none."""
    names = batch.get("example_id")
    return [str(name) for name in names] if names is not None else [f"row {i}" for i in range(len(batch["labels"]))]


def shown(examples: Sequence[str]) -> str:
    """The first few of the names, and how many more there are."""
    more = f" and {len(examples) - _SHOWN} more" if len(examples) > _SHOWN else ""
    return (", ".join(examples[:_SHOWN]) or "of another process") + more


def _reason(student: nn.Module) -> str:
    """What in the student is at fault, in a sentence."""
    for name, parameter in unwrap(student).named_parameters():
        values = held_part(parameter)
        if values is not None and values.is_floating_point() and not values.isfinite().all():
            return f"The student's weight {name} is not finite."
    return (
        "The student's weights are finite: they have grown too large (lower learning_rate), these examples overflow "
        "(in float16: train in bfloat16 or float32), or a temperature or sinkhorn_epsilon is out of all proportion."
    )
