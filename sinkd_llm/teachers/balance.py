"""A teacher whose answers follow a known prior: rows × classes Sinkhorn over all of its rows.

Shape suffixes: R rows, C classes.

With the teacher's probabilities p and a prior b over the classes (the shares that they have in the data):

    q_rc = p_rc v_c / sum_k p_rk v_k        with v so that  mean_r q_rc = b_c

q is the plan of row sums 1/R and column sums b that is nearest to p in KL divergence (Sinkhorn's scaling, Cuturi 2013,
arXiv:1306.0895, equation 2, with p as the kernel), times R. Only v, one number a class, is kept: what is balanced is
`log p + strength * log v`, and rows that come later are balanced by the same v. OTTER (arXiv:2404.08461) takes the
plan without entropy, which gives each row one class.

Plain calibration is its first step: `v_c = b_c / mean_r p_rc` (batch calibration, arXiv:2309.17249, whose prior is
uniform).

It has to see all rows: the plan of a batch of 64 forces the prior on 64 rows, whose classes do not follow it.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np

from sinkd_llm.errors import InputError, nearest
from sinkd_llm.values import listed, shown
from sinkd_llm.yaml_files import read_yaml_mapping

Array = np.ndarray[Any, Any]
# How the weights are found, and the priors that need no file.
METHODS = ("sinkhorn", "calibration")
UNIFORM, LABELS = "uniform", "labels"
# Fewer rows, in all or a class, leave a prior to chance.
FEW_ROWS, FEW_OF_A_CLASS = 2_000, 10
# An answer without probabilities to reweight, as the examination of a teacher counts them: weights of classes must be
# 99 times apart before it is another one. Where 9 of 10 rows are such answers, the others are too few to be moved to a
# prior in their place.
HARD_ANSWER, MOSTLY_HARD = 0.99, 0.9
# How far the largest share of a class may be from the prior, and how many steps that may take.
TOLERANCE, MOST_STEPS = 1e-6, 1_000


@dataclass(frozen=True, eq=False)
class Balance:
    """
    The weights of the classes.

    Args:
        log_weight_C (`np.ndarray`): what is added to a row's log-scores, strength included; of mean 0.
        prior_C (`np.ndarray`): the shares that were wanted.
        before_C, after_C (`np.ndarray`): the teacher's mean probability of each class.
        steps (`int`): of the scaling.
        error (`float`): the largest distance of a class's share to the prior at full strength, in [0, 1].
        hard_C (`np.ndarray`): the share of the rows with [`HARD_ANSWER`] or more on a class, before.
    """

    log_weight_C: Array
    prior_C: Array
    before_C: Array
    after_C: Array
    steps: int
    error: float
    hard_C: Array

    @property
    def changes_nothing(self) -> bool:
        """Whether all answers stay as they are: at strength 0, or because they follow the prior already."""
        return not self.log_weight_C.any()

    def applied(self, log_scores_C: Array) -> Array:
        """A row's log-scores, balanced; only their softmax matters."""
        return log_scores_C + self.log_weight_C


def balance(
    rows: Callable[[], Iterable[Array]],
    prior_C: Array,
    *,
    method: str = "sinkhorn",
    strength: float = 1.0,
    masses: Callable[[], Iterable[Array]] | None = None,
) -> Balance:
    """
    The weights under which a teacher's answers follow a prior.

    Args:
        rows (`Callable`): gives the rows anew each time it is called, some at a time: log-scores `[R, C]`, of which
            only the softmax matters. Memory is that of the largest part.
        prior_C (`np.ndarray`): the share of each class, above 0 and of sum 1, see [`prior_of`].
        method (`str`, *optional*, defaults to `"sinkhorn"`): `"sinkhorn"`, until every class has its share;
            `"calibration"`: one step.
        strength (`float`, *optional*, defaults to `1.0`): in [0, 1]: the share of the correction that is made, on the
            scale of logarithms.
        masses (`Callable`, *optional*): gives for each part of `rows` how many rows each of its rows stands for,
            `[R]`, at least 0. Default: one.

    Returns:
        [`Balance`]

    Raises:
        InputError: for a method, a strength or a number of classes that is not one, rows with NaN or +inf, and a
            class to which the teacher gives no probability in any row.
    """
    if method not in METHODS:
        raise InputError(f"balance_method is {method!r}; give {' or '.join(METHODS)}.")
    if not 0 <= strength <= 1:
        raise InputError(f"balance_strength is {strength}; give a number from 0 (as it is) to 1 (balanced).")
    log_prior_C, log_v_C = np.log(prior_C), np.zeros(len(prior_C))
    before_C = share_C = _mean(rows, masses, log_v_C)
    hard_C = _mean(rows, masses, log_v_C, lambda p_RC: p_RC >= HARD_ANSWER)
    if (share_C <= 0).any():
        raise InputError(
            f"The teacher gives no probability at all to class {int(np.argmin(share_C))} in any row, so that no "
            "weight can give it its share; leave the balance out, or let the teacher give probabilities in place of "
            "answers."
        )
    steps = 0
    while np.abs(share_C - prior_C).max() > TOLERANCE and steps < (1 if method == "calibration" else MOST_STEPS):
        log_v_C = log_v_C + log_prior_C - np.log(share_C)
        log_v_C -= log_v_C.mean()
        share_C, steps = _mean(rows, masses, log_v_C), steps + 1
    after_C = share_C if strength == 1 else _mean(rows, masses, strength * log_v_C)
    error = float(np.abs(share_C - prior_C).max())
    return Balance(strength * log_v_C, prior_C, before_C, after_C, steps, error, hard_C)


def _mean(
    rows: Callable[[], Iterable[Array]],
    masses: Callable[[], Iterable[Array]] | None,
    log_v_C: Array,
    of: Callable[[Array], Array] = lambda p_RC: p_RC,
) -> Array:
    """The mean over all rows of the balanced probabilities, or of what `of` them is."""
    total_C, total, count = np.zeros(1), 0.0, 0
    for scores_RC, mass_R in zip(rows(), masses() if masses is not None else repeat(None)):  # noqa: B905 - one is endless
        logs_RC = np.asarray(scores_RC, np.float64) + log_v_C
        top_R1 = logs_RC.max(axis=1, keepdims=True)
        if not np.isfinite(top_R1).all():
            row = count + int(np.flatnonzero(~np.isfinite(top_R1[:, 0]))[0])
            raise InputError(f"The teacher's scores of row {row} are no distribution (NaN or infinite); leave it out.")
        weights_RC = np.exp(logs_RC - top_R1)
        mass_R = np.ones(len(weights_RC)) if mass_R is None else mass_R
        total_C = total_C + mass_R @ of(weights_RC / weights_RC.sum(axis=1, keepdims=True))
        total, count = total + float(mass_R.sum()), count + len(weights_RC)
    if not total:
        raise InputError("The teacher says nothing of any row, so there is nothing to balance; check its rows.")
    return total_C / total


def prior_of(given: str, choices: tuple[str, ...], labels: Iterable[int]) -> Array:
    """
    The prior that `--balance` names.

    Args:
        given (`str`): `"uniform"`; `"labels"`: the shares of the training rows' labels; or a YAML file that maps each
            choice to its share, which sum to 1 (within 1e-3), or to a count.
        choices (`tuple[str, ...]`): of every row.
        labels (iterable of `int`): of the training rows that have one.

    Returns:
        `np.ndarray`: `[C]`, above 0 and of sum 1.

    Raises:
        InputError: for a file that cannot be read, lacks a choice, has another word or a share that is no number
            above 0; and for labels that lack a class.
    """
    if given == UNIFORM:
        return np.full(len(choices), 1 / len(choices))
    if given == LABELS:
        counts_C = np.bincount(np.fromiter(labels, np.int64), minlength=len(choices)).astype(float)
        if (counts_C == 0).any():
            missing = [choices[c].strip() for c in np.flatnonzero(counts_C == 0)]
            raise InputError(
                f"balance is labels, and no training row has the label {listed(missing)}, whose share would be 0; "
                "give uniform, or a YAML file with the share of each choice."
            )
        return np.asarray(counts_C / counts_C.sum())
    return _prior_of_file(Path(given).expanduser(), choices)


def _prior_of_file(path: Path, choices: tuple[str, ...]) -> Array:
    if not path.is_file():
        raise InputError(
            f"balance is {str(path)!r}: neither {UNIFORM} nor {LABELS} nor a file that is there; give one of them."
        )
    content = read_yaml_mapping(path, "prior")
    words = [choice.strip() for choice in choices]
    shares = {str(name).strip(): share for name, share in content.items()}
    for name in shares:
        if name not in words:
            raise InputError(f"{path} has the share of {name!r}, which is no choice.{nearest(name, words)}")
    if missing := [word for word in words if word not in shares]:
        raise InputError(f"{path} has no share of {listed(missing)}; give one for each of the {len(words)} choices.")
    for word in words:
        share = shares[word]
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share < float("inf"):
            raise InputError(f"{path} has the share {shown(share)} of {word!r}; give a number above 0.")
    prior_C = np.array([float(shares[word]) for word in words])
    counts = all(isinstance(shares[word], int) for word in words)
    if not counts and abs(prior_C.sum() - 1) > 1e-3:
        raise InputError(
            f"{path} has shares that sum to {prior_C.sum():g}; give shares that sum to 1, or whole numbers (counts)."
        )
    return np.asarray(prior_C / prior_C.sum())


def remarks(rows: int, found: Balance, choices: tuple[str, ...]) -> list[str]:
    """
    What to know of a balance over so few rows, or of answers that have no probabilities, in sentences.

    Args:
        rows (`int`): that were balanced.
        found ([`Balance`]): of them.
        choices (`tuple[str, ...]`): the names of the classes.
    """
    sentences, hard, prior_C = [], float(found.hard_C.sum()), found.prior_C
    most = int(np.argmax(found.hard_C - prior_C))
    if hard >= MOSTLY_HARD:
        sentences.append(
            f"Of {hard:.0%} of the rows the teacher gives {HARD_ANSWER:g} or more to one answer, which leaves no "
            "probabilities to reweight: the balance mixes the rows of answers that come too often with the others, "
            "all alike, for it cannot tell which of them are wrong. Let the teacher give probabilities, or leave the "
            "balance out."
        )
    elif found.hard_C[most] > prior_C[most]:
        sentences.append(
            f"To {choices[most].strip()!r}, whose share is to be {prior_C[most]:.1%}, the teacher gives "
            f"{HARD_ANSWER:g} or more in {found.hard_C[most]:.1%} of the rows. These leave no probabilities to "
            "reweight, so that the other rows have to make up for them, and are moved far from what the teacher says. "
            "Let the teacher give probabilities in every row, or leave the balance out."
        )
    least = int(np.argmin(prior_C))
    few = rows * float(prior_C[least])
    if rows >= FEW_ROWS and few >= FEW_OF_A_CLASS:
        return sentences
    return [
        *sentences,
        f"The balance is over {rows:,} rows, of which {few:.0f} should be {choices[least].strip()!r}: the classes of "
        f"so few rows do not follow a prior closely ({FEW_ROWS:,} rows and {FEW_OF_A_CLASS} of each class are "
        "advised); give more rows, or a smaller balance_strength.",
    ]
