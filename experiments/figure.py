"""
The figure of docs/results.md: students whose distributions have one mode, fitted with the package's own losses.

    python experiments/figure.py

On the left a row of a teacher with two modes. On the right two rows of a group: the teacher's rows are known, and
given in the wrong order; the student starts near its own rows, as a few labels would leave it.
"""

import sys
from collections.abc import Callable
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import torch
from torch import Tensor

from sinkd_llm.objectives import DIVERGENCES, TransportedSettings, TransportSettings, sinkd_term, transported_term

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "benchmarks"))
from charts import COLOURS, STYLE  # noqa: E402

V, STEPS, RATE = 60, 800, 0.1
POINTS_V = torch.arange(V, dtype=torch.float64)


def bump(centre: float, width: float) -> Tensor:
    """Probabilities of a discrete normal distribution, `[V]`."""
    return torch.softmax(-((POINTS_V - centre) ** 2) / (2 * width**2), dim=0)


def fitted(loss: Callable[[Tensor], Tensor], centres: list[float], width: float) -> Tensor:
    """Rows of one mode each, `[N, V]`, after gradient descent on their centres and widths from these."""
    centre_N = torch.tensor(centres, dtype=torch.float64, requires_grad=True)
    log_width_N = torch.full_like(centre_N, width).log().detach().requires_grad_()
    optimizer = torch.optim.Adam([centre_N, log_width_N], lr=RATE)
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss(_logits(centre_N, log_width_N)).backward()
        optimizer.step()
    return _logits(centre_N, log_width_N).softmax(dim=-1).detach()


def _logits(centre_N: Tensor, log_width_N: Tensor) -> Tensor:
    return -((POINTS_V - centre_N[:, None]) ** 2) / (2 * log_width_N.exp()[:, None] ** 2)


def losses(teacher_NV: Tensor) -> dict[str, Callable[[Tensor], Tensor]]:
    """The package's losses of student logits to the teacher's rows as they are given, all rows being one problem."""
    N = len(teacher_NV)
    rows, zeros = torch.arange(N), torch.zeros(N, dtype=torch.long)
    published, of_means = TransportSettings(), TransportedSettings(transported_coupling="proportion")
    return {
        "KL": lambda z: DIVERGENCES["kl"](z, teacher_NV).mean(),
        "reverse KL": lambda z: DIVERGENCES["rkl"](z, teacher_NV).mean(),
        "JS": lambda z: DIVERGENCES["js"](z, teacher_NV).mean(),
        "SinKD": lambda z: sinkd_term(z, teacher_NV, published, example_N=rows, position_N=zeros).value,
        "proportions": lambda z: transported_term(z, teacher_NV, of_means).value,
        "transported": lambda z: transported_term(z, teacher_NV).value,
    }


def draw() -> None:
    """Writes `figure.svg` beside this file."""
    two_modes = (0.6 * bump(15, 3) + 0.4 * bump(42, 4)).log()[None]
    own = torch.stack([bump(17, 3), bump(43, 3)])
    given = own.flip(0).log()
    with mpl.rc_context(STYLE):
        figure, axes = plt.subplots(1, 5, figsize=(13, 3.2), sharey=True, width_ratios=[1.4, 1, 1, 1, 1])
        _teacher(axes[0], two_modes.exp())
        for colour, name in zip(COLOURS, ("KL", "reverse KL", "JS", "SinKD"), strict=False):
            axes[0].plot(POINTS_V, fitted(losses(two_modes)[name], [20.0], 4.0)[0], color=colour, label=name)
        axes[0].set_title("one row with two modes", fontsize=10)
        axes[0].legend(frameon=False, fontsize=9)
        for axis, name in zip(axes[1:], ("KL", "SinKD", "proportions", "transported"), strict=True):
            _teacher(axis, own)
            rows = fitted(losses(given)[name], [26.0, 34.0], 6.0)
            for colour, row, which in zip(COLOURS, rows, ("first", "second"), strict=False):
                axis.plot(POINTS_V, row, color=colour, label=f"{which} row")
            axis.set_title(f"group of two: {name}", fontsize=10)
        axes[1].legend(frameon=False, fontsize=9)
        for axis in axes:
            axis.set_xlabel("class")
            axis.set_xticks([])
        axes[0].set_ylabel("probability")
        axes[0].set_ylim(0, 0.18)
        figure.tight_layout()
        figure.savefig(HERE / "figure.svg", metadata={"Date": None})
        plt.close(figure)


def _teacher(axis: plt.Axes, rows_NV: Tensor) -> None:
    for row in rows_NV:
        axis.fill_between(POINTS_V, row, color="#cccccc", linewidth=0, alpha=0.8)


if __name__ == "__main__":
    draw()
