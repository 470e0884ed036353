"""Cross-entropy and the divergences between the teacher's and the student's next-token distributions.

Shape suffixes: N supervised tokens, V vocabulary.

With p the teacher's softmax and q the student's, both at the same temperature (nats, one value per row):

    kl    KL(p || q)                       pulls q over all of p's mass     (Hinton et al., arXiv:1503.02531)
    rkl   KL(q || p)                       pulls q into p's modes
    js    (KL(p || m) + KL(q || m)) / 2    m = (p + q) / 2, at most log 2
    tvd   sum |p - q| / 2                  at most 1

`DIVERGENCES` is the one table of them: a new divergence is one function and one row. Each is a sum over the
vocabulary, so that it can be added up a tile of ids at a time. With `d'_v` the derivative of the sum to `log q_v` (the
*slope*), the derivative to the student's logit at temperature 1 is `d'_v - q_v sum_k d'_k`: a multiple of q may be
added to the slope, and the four above use that to make it exactly 0 where p = q. What automatic differentiation gives
is not (it leaves the rounding of `sum p - 1`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sinkd_llm.optimal_transport.precision import full_precision

# (log q, log p, q, p), each [N, w] of some ids -> (their part of the value [N], their slopes [N, w]).
Kernel = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
# (log q, log p, p) -> the value alone, [N], and log p may be overwritten; (q, p) -> the slopes alone, [N, w].
Halves = tuple[Callable[[Tensor, Tensor, Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]]


def cross_entropy(student_NV: Tensor, labels_N: Tensor) -> Tensor:
    """`-log softmax(student)[label]`, one value per row.

    Args:
        student_NV (`Tensor`):
            Logits `[N, V]` of any floating dtype; computed in fp32, or fp64 if given fp64. N may be 0.
        labels_N (`Tensor`):
            Token ids `[N]` in [0, V); there is no ignored label here: rows are supervised tokens.

    Returns:
        `Tensor`: `[N]`.
    """
    logits_NV = full_precision(student_NV)
    gold_N = logits_NV.gather(-1, labels_N[:, None]).squeeze(-1)
    return torch.logsumexp(logits_NV, dim=-1) - gold_N


def squared_error(student_N1: Tensor, target_N: Tensor) -> Tensor:
    """`(student - target)^2`, one value per row: what a regression has in place of cross-entropy and divergence.

    Args:
        student_N1 (`Tensor`):
            Predictions `[N, 1]` of any floating dtype; computed in fp32, or fp64 if given fp64. N may be 0.
        target_N (`Tensor`):
            True values, or the teacher's predictions, `[N]` or `[N, 1]`; never receives a gradient.

    Returns:
        `Tensor`: `[N]`.
    """
    student_N = full_precision(student_N1).squeeze(-1)
    return (student_N - target_N.detach().view(student_N.shape).to(student_N.dtype)).square()


@dataclass(frozen=True)
class Divergence:
    """
    One row of `DIVERGENCES`. A call gives one value per row.

    Args:
        kernel (`Callable`): `(log_q, log_p, q, p) -> (value_N, slope_Nw)` over some ids of the vocabulary, see the
            module; or [`by_autograd`] of a function of the first two that gives the value alone. The value over all
            ids is at least 0, and 0 for q = p.
        temperature_order (`int`): order of the gradient in 1 / temperature, when the temperature is high: 2 for what
            is quadratic in q - p, 1 for what is linear, see [`temperature_factor`].
        merging_lowers (`bool`): whether merging ids into one never raises it (the data-processing inequality, which
            every f-divergence obeys). Only then a top-k signal bounds it from below.
        halves (`tuple[Callable, Callable]`, *optional*): the kernel as two functions, `(log_q, log_p, p) -> value_N`
            and `(q, p) -> slope_Nw`, for a divergence whose slopes need no logarithm and sum to 0 over all ids. The
            sweep then computes each where it is needed, and keeps no logarithm. The first may overwrite `log_p`.
        equation (`str`, *optional*), purpose (`str`, *optional*): what users are told of it, with p the teacher's and
            q the student's distribution of a row.
    """

    kernel: Kernel
    temperature_order: int
    merging_lowers: bool
    halves: Halves | None = None
    equation: str = ""
    purpose: str = ""

    def __call__(self, student_NV: Tensor, teacher_NV: Tensor, temperature: float = 1.0) -> Tensor:
        """The divergence of each row.

        Exactly 0, with a gradient of exactly 0, where the two agree (of the four that are here). No factor for the
        temperature is applied, see [`temperature_factor`]. A logit of -inf on both sides takes no part; one that only
        the student has costs a large finite amount. A row with a logit of NaN or +inf, or with none above -inf, is
        NaN.

        Args:
            student_NV (`Tensor`):
                Logits `[N, V]` of any floating dtype; computed in fp32, or fp64 if given fp64. N may be 0.
            teacher_NV (`Tensor`):
                Logits `[N, V]`; never receives a gradient.
            temperature (`float`, *optional*, defaults to `1.0`):
                Divides both sides' logits before the softmax.

        Returns:
            `Tensor`: `[N]`.
        """
        value_N: Tensor = _Rows.apply(student_NV, teacher_NV, temperature, self.kernel)
        return value_N


def by_autograd(value: Callable[[Tensor, Tensor], Tensor]) -> Kernel:
    """
    The kernel of a divergence that is written as its formula alone.

    Args:
        value (`Callable`): `(log_q, log_p) -> [N]`, a sum over the ids it is given, differentiable to `log_q`.
            [`log_ratio`] is finite where a logit is -inf.
    """

    def kernel(log_q: Tensor, log_p: Tensor, q: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            at = log_q.detach().requires_grad_()
            value_N = value(at, log_p)
            (slope_Nw,) = torch.autograd.grad(value_N.sum(), at)
        return value_N.detach(), slope_Nw

    return kernel


def log_ratio(log_x: Tensor, log_y: Tensor) -> Tensor:
    """`log x - log y`, 0 where both are -inf, and so large that it stays finite times 0 where one is."""
    return _finite(log_x - log_y)


def _finite(difference: Tensor) -> Tensor:
    """The same of a difference, in place."""
    return difference.nan_to_num_(nan=0.0, posinf=1e4, neginf=-1e4)


class _Rows(torch.autograd.Function):
    """Runs a kernel on the two log-softmaxes and keeps its gradient, the only [N, V] buffer."""

    @staticmethod
    def forward(ctx: Any, student_NV: Tensor, teacher_NV: Tensor, temperature: float, kernel: Kernel) -> Tensor:
        log_q = torch.log_softmax(full_precision(student_NV) / temperature, dim=-1)
        log_p = torch.log_softmax(full_precision(teacher_NV) / temperature, dim=-1)
        # A NaN or an infinite logit makes the whole row of its log-softmax NaN, so one column tells; the kernels
        # take any NaN of theirs for a logit of -inf on both sides.
        broken_N = log_q[:, 0].isnan() | log_p[:, 0].isnan()
        q = log_q.exp()
        value_N, slope_NV = kernel(log_q, log_p, q, log_p.exp())
        value_N.masked_fill_(broken_N, float("nan"))
        grad_NV = slope_NV.addcmul_(q, slope_NV.sum(dim=-1, keepdim=True), value=-1)
        ctx.save_for_backward(grad_NV.div_(temperature) if ctx.needs_input_grad[0] else None)
        ctx.dtype = student_NV.dtype
        return value_N.clamp_(min=0)  # what is below 0 is rounding

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_N: Tensor) -> tuple[Tensor | None, None, None, None]:
        (grad_NV,) = ctx.saved_tensors
        if grad_NV is None:
            return None, None, None, None
        return (grad_N[:, None] * grad_NV).to(ctx.dtype), None, None, None


def _kl_value(log_q: Tensor, log_p: Tensor, p: Tensor) -> Tensor:
    # KL(p || q) = sum p (log p - log q)
    return _finite(log_p.sub_(log_q)).mul_(p).sum(dim=-1)


def _kl_slope(q: Tensor, p: Tensor) -> Tensor:
    # d' = -p, and q more
    return q - p


def _forward_kl(log_q: Tensor, log_p: Tensor, q: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
    return _kl_value(log_q, log_p.clone(), p), _kl_slope(q, p)


def _reverse_kl(log_q: Tensor, log_p: Tensor, q: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
    # KL(q || p) = sum q (log q - log p)      d' = q (log q - log p) + q, and q less
    slope = log_ratio(log_q, log_p).mul_(q)
    return slope.sum(dim=-1), slope


def _jensen_shannon(log_q: Tensor, log_p: Tensor, q: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
    # JS = (KL(p || m) + KL(q || m)) / 2      d' = q (log q - log m) / 2
    # log((1 + e^d) / 2) = max(d, 0) + log1p(expm1(-|d|) / 2): no overflow, and exactly 0 at d = 0.
    d = log_ratio(log_p, log_q)
    bend = torch.log1p(torch.expm1(-d.abs()) / 2)
    log_p_to_m = -(bend + (-d).clamp_(min=0))
    slope = -(bend + d.clamp_(min=0)).mul_(q).div_(2)
    return log_p_to_m.mul_(p).sum(dim=-1) / 2 + slope.sum(dim=-1), slope


def _total_variation(log_q: Tensor, log_p: Tensor, q: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
    # TVD = sum |q - p| / 2                   d' = q sign(q - p) / 2
    difference = q - p
    value_N = difference.abs().sum(dim=-1) / 2
    return value_N, difference.sign_().mul_(q).div_(2)


DIVERGENCES: dict[str, Divergence] = {
    "kl": Divergence(
        _forward_kl,
        temperature_order=2,
        merging_lowers=True,
        halves=(_kl_value, _kl_slope),
        equation="KL(p || q) = sum p log(p / q)",
        purpose="the first choice where each row has its own teacher row; the student covers all that p gives mass to",
    ),
    "rkl": Divergence(
        _reverse_kl,
        temperature_order=2,
        merging_lowers=True,
        equation="KL(q || p) = sum q log(q / p)",
        purpose="a student too small to cover p keeps to its largest modes",
    ),
    "js": Divergence(
        _jensen_shannon,
        temperature_order=2,
        merging_lowers=True,
        equation="(KL(p || m) + KL(q || m)) / 2 with m = (p + q) / 2",
        purpose="between the two; bounded by log 2 a row",
    ),
    "tvd": Divergence(
        _total_variation,
        temperature_order=1,
        merging_lowers=True,
        equation="sum |p - q| / 2",
        purpose="bounded by 1 a row: a wrong teacher row pulls no harder than a right one; a new head hardly moves",
    ),
}
# What the setting `divergence` takes.
NO_DIVERGENCE = "none"
DIVERGENCE_CHOICES = (*DIVERGENCES, NO_DIVERGENCE)


def temperature_factor(divergence: str, temperature: float) -> float:
    """The factor that keeps the size of a divergence's gradient the same at every temperature.

    `temperature ** 2` for `kl`, `rkl` and `js` (Hinton et al., arXiv:1503.02531, section 2.1) and `temperature` for
    `tvd`. For a high temperature T, `q - p` is of order 1 / T, and so is the derivative of the softmax: what is
    quadratic in `q - p` has a gradient of order 1 / T^2, and what is linear one of order 1 / T. docs/method.md has
    the derivation.
    """
    return float(temperature) ** DIVERGENCES[divergence].temperature_order
