"""What a loss can be made of, what each part needs of the data, and which data ask for which: for users to read.

Who shows it to users writes it in a form of its own; the names are those of settings and logs.
"""

from dataclasses import dataclass

from sinkd_llm.objectives.couplings import IDENTITY, PROPORTION, ROW_SOFTMAX
from sinkd_llm.objectives.divergences import DIVERGENCES
from sinkd_llm.objectives.objective_settings import CE, MSE, SINKHORN, TEACHER_MSE, TRANSPORTED
from sinkd_llm.objectives.state_terms import StateSettings

# What a part of the loss may need, and what is meant.
NEEDS = {
    "labels": "the right answer of a row; rows without a label are left out of this part alone",
    "pairs": "a teacher row for each row, and the knowledge which is whose",
    "sets": "the teacher's rows of a problem, in any order: a group of the data, or a batch",
    "names": "labels or pairs beside it, because matching sets does not say which class is which",
    "several rows": "more than one row in a problem, with the same answer choices (or the same vocabulary)",
    "states": "a teacher that is a model here, not a cache, a file or a server; over tokens or classes",
    "numbers": "a task whose answers are numbers, and a student with one output",
}

# The transported cross-entropy as the only term of the teacher.
_ALONE = "alpha: 0, divergence: none, sinkhorn_weight: 0, transported_weight: 10"


@dataclass(frozen=True)
class Part:
    """
    A part of the loss.

    Attributes:
        name (`str`): as it is logged; a control of another part is its name with the control's.
        setting (`str`): what switches it on.
        equation (`str`): of one row, or of one problem of n rows, in nats, before the weight and the temperature's
            factor: q and s_i are the student's distributions, p and t_j the teacher's.
        needs (`tuple[str, ...]`): keys of `NEEDS`.
        purpose (`str`): what it is for.
    """

    name: str
    setting: str
    equation: str
    needs: tuple[str, ...]
    purpose: str


@dataclass(frozen=True)
class Advice:
    """
    What to begin with.

    Attributes:
        data (`str`): what a user has.
        parts (`tuple[str, ...]`): names of parts of the loss.
        settings (`str`): as a recipe has them.
        remark (`str`): what to know.
    """

    data: str
    parts: tuple[str, ...]
    settings: str
    remark: str


def parts() -> tuple[Part, ...]:
    """All parts that a loss can have, the divergences as their table has them."""
    divergences = [
        Part(name, f"divergence: {name}, alpha above 0", one.equation, ("pairs",), one.purpose)
        for name, one in DIVERGENCES.items()
    ]
    return (
        Part(CE, "alpha below 1", "-log q(label)", ("labels",), "learn from labels"),
        *divergences,
        Part(
            TRANSPORTED,
            "transported_weight above 0",
            "n sum_ij P_ij KL(t_j || s_i), P = Sinkhorn of CE(t_j, s_i) / epsilon, held constant",
            ("sets", "several rows", "names"),
            "teacher rows that are known per group, or whose order within a batch is not to be trusted; many classes",
        ),
        Part(
            f"{TRANSPORTED} ({PROPORTION})",
            f"transported_coupling: {PROPORTION}",
            "n KL(mean t || mean s)",
            ("sets", "several rows"),
            "control: what the shares of the classes in a group say without a plan (the loss of label proportions)",
        ),
        Part(
            f"{TRANSPORTED} ({ROW_SOFTMAX})",
            f"transported_coupling: {ROW_SOFTMAX}",
            "the same with P_ij = softmax_j(-CE(t_j, s_i) / epsilon) / n",
            ("sets", "several rows", "names"),
            "control: the nearest teacher rows, each used as often as it likes",
        ),
        Part(
            f"{TRANSPORTED} ({IDENTITY})",
            f"transported_coupling: {IDENTITY}",
            "sum_i KL(t_i || s_i)",
            ("pairs",),
            "control: the pairs as they are given, without a plan",
        ),
        Part(
            SINKHORN,
            "sinkhorn_weight above 0",
            "n sum_ij P_ij |s_i - t_j|_1, P = Sinkhorn of |s_i - t_j|_1 / epsilon",
            ("sets", "several rows", "names"),
            "the published method (SinKD)",
        ),
        Part(
            StateSettings.HIDDEN,
            "hidden_weight above 0",
            "1 - cos(W h, g), with h and g the mean hidden states of a prompt, W learnt",
            ("pairs", "states"),
            "hidden states beside another part; no gain was shown (docs/method.md)",
        ),
        Part(
            StateSettings.QUEUE,
            "queue_weight above 0",
            "-sum_d p(d) log q(d), over a queue of the teacher's states: p = softmax of cos(g, d), q of cos(W h, d)",
            ("pairs", "states"),
            "hidden states beside another part (SEED); a gain is not settled (docs/method.md)",
        ),
        Part(MSE, "alpha below 1", "(prediction - label)^2", ("labels", "numbers"), "learn numbers from labels"),
        Part(
            TEACHER_MSE,
            "a divergence, alpha above 0",
            "(prediction - the teacher's)^2",
            ("pairs", "numbers"),
            "learn the teacher's numbers",
        ),
    )


def advice() -> tuple[Advice, ...]:
    """Data like this, a loss like that."""
    return (
        Advice("labels, no teacher", (CE,), "no teacher", "The baseline that a distilled student has to beat."),
        Advice(
            "a teacher row for each row",
            ("kl", CE),
            "divergence: kl, sinkhorn_weight: 0",
            "Tune alpha and temperature (1, 2, 4) on held-out training rows before anything else.",
        ),
        Advice(
            "a teacher that has seen no label, and known shares of the classes",
            ("kl",),
            "alpha: 1, divergence: kl, sinkhorn_weight: 0, balance: uniform, labels or a file",
            "Its answers get the shares over all rows, by Sinkhorn, before anybody learns from them: it takes "
            "thousands of rows, answers with probabilities, and the right shares.",
        ),
        Advice(
            "teacher rows known per group only (shuffled, anonymised), and some labels",
            (TRANSPORTED, CE),
            f"{_ALONE}, transport_scope: group, group_column: NAME",
            "A group stays in one batch. The labels name the classes: fine-tune the student on them first (sinkd "
            "finetune), and put some into every batch (unlabelled_ratio 0.8).",
        ),
        Advice(
            "for each group how often each answer came, and some labels",
            (TRANSPORTED, CE),
            f"{_ALONE}, transport_scope: group, group_column: NAME",
            "Counts are teacher rows of one answer each. The shares alone are what the control `proportion` uses.",
        ),
        Advice(
            "a server that answers several rows in one request, and some labels",
            (TRANSPORTED, CE),
            f"{_ALONE}, transport_scope: group, transported_anchor: 0.3, teacher_rows_per_request: K",
            "Lists with an answer for each row are pairs that mostly hold; other lists are sets of answers.",
        ),
        Advice(
            "a teacher row for each row, of which some are swapped within the batch or the group",
            (TRANSPORTED, CE),
            f"{_ALONE}, transported_anchor: 0.3",
            "The right row must be in the problem: rows swapped over the whole set are not repaired.",
        ),
        Advice(
            "a teacher that is wrong in itself, or wrong rows from anywhere in the set",
            ("tvd", CE),
            "divergence: tvd, sinkhorn_weight: 0",
            "No transport repairs this. Raise the weight of the labels that there are.",
        ),
        Advice(
            "two classes, teacher rows known per group only, and some labels",
            (f"{TRANSPORTED} ({PROPORTION})", CE),
            "as for groups, with transported_coupling: proportion",
            "With two classes the shares say most of what a plan could find. Compare with the plan (a smaller "
            "transported_epsilon, 0.05 to 0.1).",
        ),
        Advice(
            "numbers",
            (TEACHER_MSE, MSE),
            "sinkhorn_weight: 0",
            "A distribution over one output says nothing, so that the transported cross-entropy is refused.",
        ),
    )
