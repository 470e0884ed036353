"""The names under which training logs the terms of its loss and its diagnostics, what they are called, and where they
are drawn. A test holds this table against what the objectives emit."""

from collections.abc import Mapping
from dataclasses import dataclass

# Over what a loss is a mean: of a classifier, which has one answer a row, over rows.
TOKEN, ROW = "supervised token", "row"
MEAN = "mean per {supervised}"


@dataclass(frozen=True)
class Plot:
    """
    Quantities of one unit, which are drawn together.

    Attributes:
        title (`str`): of the plot.
        unit (`str`): of its values, in which `{supervised}` is `TOKEN` or `ROW`; empty where the title says it.
        labels (`Mapping[str, str]`): name in a log record -> what it is called in the legend.
    """

    title: str
    unit: str
    labels: Mapping[str, str]


LOSS = Plot(
    "Loss terms",
    MEAN,
    {
        "loss": "total loss",
        "ce": "cross-entropy",
        "kl": "KL",
        "rkl": "reverse KL",
        "js": "Jensen-Shannon",
        "tvd": "total variation",
        "mse": "squared error",
        "teacher_mse": "squared error to the teacher",
        "sinkhorn": "SinKD",
        "transported": "transported cross-entropy",
        "hidden": "cosine distance of hidden states (per example)",
        "queue": "queue cross-entropy of hidden states (per example)",
    },
)
PLAN = Plot(
    "The transport plan",
    "share",
    {
        f"{term}/{name}": what + of
        for term, of in (("sinkhorn", ""), ("transported", ", transported cross-entropy"))
        for name, what in (
            ("diagonal_mass", "diagonal mass of the plan"),
            ("plan_entropy", "entropy of the plan"),
            ("row_error", "row-marginal error"),
        )
    },
)
COST = Plot(
    "What a cached teacher leaves open of the transport cost",
    "L1 distance, 0 to 2",
    {"sinkhorn/cost_width": "width of the interval that the cost lies in"},
)
ENTROPY = Plot(
    "Entropy of the predictions",
    "nats per {supervised}",
    {"teacher_entropy": "teacher", "student_entropy": "student"},
)
LEARNING_RATE = Plot("Learning rate", "", {"learning_rate": "learning rate"})


def score_plot(metric: str | None) -> Plot:
    """The scores of evaluations during training: the task's metric, if it has one, and agreement with the teacher."""
    labels = {} if metric is None else {f"eval_{metric}": metric}
    return Plot("Score on the evaluation rows", "", labels | {"eval_agreement": "agreement with the teacher"})
