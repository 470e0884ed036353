"""What texts are compared by: normalised words, ROUGE-L, and the perplexity of reference texts."""

import functools
import logging
import math
import re
import string
import sys
from collections import Counter
from collections.abc import Sequence
from typing import Any

from sinkd_llm.errors import InputError, NonFiniteError

logger = logging.getLogger(__name__)


def normalize_answer(text: str) -> str:
    """Lower case, without punctuation and English articles, single spaces: SQuAD's and ReCoRD's normalisation."""
    text = text.lower().translate(str.maketrans("", "", string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def overlap_f1(prediction: str, reference: str) -> float:
    """F1 of the words of two texts, each counted as often as it occurs, in [0, 1]; 0 if they share none."""
    predicted, gold = normalize_answer(prediction).split(), normalize_answer(reference).split()
    shared = sum((Counter(predicted) & Counter(gold)).values())
    return 2 * shared / (len(predicted) + len(gold)) if shared else 0.0


def rouge_l(prediction: str, reference: str) -> float:
    """
    ROUGE-L of one text against one reference, in [0, 1], as the package `rouge_score` gives it (without stemming).

    The harmonic mean of precision and recall of the longest common subsequence of words (Lin 2004, eq. 2-4 with
    beta = 1). Words are runs of the letters a to z and of digits in lower case: every other letter separates words,
    so nothing of a text in another script is compared. 0 if either text has no word.
    """
    return float(_rouge_scorer().score(reference, prediction)["rougeL"].fmeasure)


def mean_rouge_l(predictions: Sequence[str], references: Sequence[str]) -> float:
    """Mean [`rouge_l`] of texts against one reference each, in [0, 1]; a warning counts what it cannot compare."""
    foreign = sum(any(char.isalpha() and not char.isascii() for char in text) for text in references)
    if foreign:
        logger.warning(
            "%d of %d reference texts have letters other than a to z, which rouge_l leaves out, as the package "
            "rouge_score does: it says little about a text in another script.",
            foreign,
            len(references),
        )
    scores = [rouge_l(prediction, reference) for prediction, reference in zip(predictions, references, strict=True)]
    return sum(scores) / len(scores)


@functools.cache
def _rouge_scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"])


def perplexity(log_likelihoods: Sequence[float], num_tokens: Sequence[int]) -> float:
    """
    exp of the mean negative log-likelihood per token, at least 1, over answers given by their sums in nats.

    Raises:
        InputError: if there are no tokens.
        NonFiniteError: for a log-likelihood that is NaN or infinite, or a mean that no number can hold.
    """
    if not sum(num_tokens):
        raise InputError("There are no tokens to take the perplexity of; give at least one row.")
    mean = -sum(log_likelihoods) / sum(num_tokens)
    if not -1e-3 < mean < math.log(sys.float_info.max):  # rounding may leave it just below 0; NaN is nowhere
        raise NonFiniteError(
            f"The mean negative log-likelihood of a token is {mean:g} nats, which has no perplexity: the model gives "
            "no numbers, or ones out of all proportion; check its weights."
        )
    return math.exp(max(mean, 0.0))
