"""Is a teacher worth listening to? Its scores on the rows that it teaches, beside those on rows that it never saw.

Shape suffixes: R rows, C choices of a row.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sinkd_llm.errors import InputError
from sinkd_llm.metrics.calibration import calibration_error, distributions

# A top probability above this leaves next to nothing for the other choices.
SHARP = 0.99
# A teacher has memorised its rows where its score on them is above the held-out one by more than chance gives (once in
# 740 times: three standard deviations) and by more than nothing; and where it is sharp there, and twice as sharp.
MEMORISED_CHANCE, MEMORISED_GAP, MEMORISED_ENTROPY = 0.00135, 0.03, 0.5
# Of the rows that the words' baseline is fitted and scored on, so that it takes seconds.
MOST_ROWS = 20_000


@dataclass(frozen=True)
class Findings:
    """
    What a teacher's distributions over the choices are like, on one set of rows.

    Args:
        rows (`int`): R.
        labelled (`int`): the rows among them that have a label.
        score (`float`, *optional*): accuracy over the labelled rows, in [0, 1]; `None` without any.
        entropy (`float`): mean over all rows, in nats.
        calibration_error (`float`, *optional*): expected calibration error over the labelled rows, in [0, 1].
        sharp (`float`): share of all rows with a top probability above 0.99, in [0, 1].
        median_top (`float`): median of the top probabilities of all rows, in [0, 1].
    """

    rows: int
    labelled: int
    score: float | None
    entropy: float
    calibration_error: float | None
    sharp: float
    median_top: float


@dataclass(frozen=True)
class Examination:
    """
    A teacher on two sets of rows.

    Args:
        taught ([`Findings`]): on the rows that it will teach.
        held_out ([`Findings`], *optional*): on rows that it was not trained on; `None` where it has none.
    """

    taught: Findings
    held_out: Findings | None = None

    @property
    def judged(self) -> Findings:
        """The rows that tell how good the teacher is: those that are held out, if there are labels."""
        return self.held_out if self.held_out is not None and self.held_out.score is not None else self.taught

    @property
    def memorised(self) -> bool:
        """Whether score and sharpness on the rows that it teaches are far above those on held-out rows."""
        here, there = self.taught, self.held_out
        if there is None or here.score is None or there.score is None:
            return False
        if here.median_top <= SHARP or here.entropy >= MEMORISED_ENTROPY * there.entropy:
            return False
        if here.score - there.score <= MEMORISED_GAP:
            return False
        from scipy.stats import fisher_exact

        # Exact, as a held-out set may be small, and all of the taught rows right.
        right = round(here.score * here.labelled), round(there.score * there.labelled)
        table = [[right[0], here.labelled - right[0]], [right[1], there.labelled - right[1]]]
        return bool(fisher_exact(table, alternative="greater").pvalue < MEMORISED_CHANCE)

    def above(self, baseline: float) -> bool:
        """Whether the teacher is above a baseline's score on the same rows by more than one standard error of it."""
        score, count = self.judged.score, self.judged.labelled
        return score is None or score - baseline > math.sqrt(baseline * (1 - baseline) / count)


def examine(
    scores_RC: Sequence["np.ndarray[Any, Any]"],
    labels_R: Sequence[int | None],
    held_out_scores: Sequence["np.ndarray[Any, Any]"] = (),
    held_out_labels: Sequence[int | None] = (),
) -> Examination:
    """
    What a teacher is like on the rows that it will teach and on rows that it was not trained on.

    Args:
        scores_RC (`Sequence[np.ndarray]`): a row of log-scores of the choices for each row that the teacher will
            teach, at least one; only their softmax matters. Rows may have different choices.
        labels_R (`Sequence[int]`): the index of the right choice; `None` or -1 for a row without a label.
        held_out_scores, held_out_labels (*optional*): the same of rows that it was not trained on.

    Returns:
        [`Examination`]

    Raises:
        InputError: without a row, for NaN or +inf among the scores, and for a label outside of a row's choices.
    """
    held_out = _findings(held_out_scores, held_out_labels) if len(held_out_scores) else None
    return Examination(_findings(scores_RC, labels_R), held_out)


def _findings(scores_RC: Sequence["np.ndarray[Any, Any]"], labels_R: Sequence[int | None]) -> Findings:
    if not len(scores_RC):
        raise InputError("The teacher says nothing of any row, so there is nothing to examine; check its rows.")
    probabilities_RC = distributions([row.tolist() for row in map(np.asarray, scores_RC)])
    logs_RC = np.log(probabilities_RC, out=np.zeros_like(probabilities_RC), where=probabilities_RC > 0)
    confidence_R, chosen_R = probabilities_RC.max(-1), probabilities_RC.argmax(-1)
    gold_R = np.array([-1 if label is None else label for label in labels_R])
    for index, (label, row) in enumerate(zip(gold_R.tolist(), scores_RC, strict=True)):
        if not -1 <= label < len(row):
            raise InputError(f"The label of row {index} is {label}, but the row has {len(row)} choices.")
    known_R = gold_R >= 0
    right_L = (chosen_R == gold_R)[known_R]
    return Findings(
        rows=len(scores_RC),
        labelled=len(right_L),
        score=float(right_L.mean()) if len(right_L) else None,
        entropy=abs(float((probabilities_RC * logs_RC).sum(-1).mean())),
        calibration_error=calibration_error(confidence_R[known_R], right_L) if len(right_L) else None,
        sharp=float((confidence_R > SHARP).mean()),
        median_top=float(np.median(confidence_R)),
    )


def majority(labels_R: Sequence[int | None]) -> float | None:
    """
    The score of the most frequent label as the answer to every row, in [0, 1].

    Args:
        labels_R (`Sequence[int]`): `None` and -1 for rows without a label, which do not count.

    Returns:
        `float`, *optional*: `None` without a label.
    """
    counts = Counter(label for label in labels_R if label not in (None, -1))
    return max(counts.values()) / counts.total() if counts else None


def tfidf_baseline(
    train_texts: Sequence[str],
    train_labels: Sequence[int | None],
    texts: Sequence[str],
    labels: Sequence[int | None],
) -> float | None:
    """
    The score of a logistic regression over the TF-IDF of words and pairs of words: what needs no language model.

    Args:
        train_texts, train_labels: the rows to fit; `None` and -1 for rows without a label, which do not count. Of more
            than 20,000, a sample is drawn, the same in every run.
        texts, labels: the rows to score, likewise.

    Returns:
        `float`, *optional*: accuracy, in [0, 1]; `None` where there are fewer than two classes, or no words, to fit,
        or no label to score.
    """
    scored_texts, scored_labels = _sample(texts, labels)
    predict = fit_tfidf(train_texts, train_labels) if scored_labels else None
    if predict is None:
        return None
    return float(np.mean(np.array(predict(scored_texts)) == scored_labels))


def fit_tfidf(
    train_texts: Sequence[str], train_labels: Sequence[int | None]
) -> Callable[[Sequence[str]], list[int]] | None:
    """
    A logistic regression over the TF-IDF of words and pairs of words.

    Args:
        train_texts, train_labels: as of [`tfidf_baseline`].

    Returns:
        `Callable`, *optional*: texts to labels; `None` where there are fewer than two classes, or no words, to fit.
    """
    import warnings

    from sklearn.exceptions import ConvergenceWarning
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    fitted_texts, fitted_labels = _sample(train_texts, train_labels)
    if len(set(fitted_labels)) < 2:
        return None
    vectors = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    try:
        train = vectors.fit_transform(fitted_texts)
    except ValueError:  # not one word in all the texts
        return None
    # On 10,000 rows of 77 classes, SAGA needs a tenth of L-BFGS's time, and at this tolerance scores the same.
    model = LogisticRegression(C=10.0, solver="saga", tol=1e-2, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(train, fitted_labels)
    return lambda texts: [int(label) for label in model.predict(vectors.transform(texts))]


def _sample(texts: Sequence[str], labels: Sequence[int | None]) -> tuple[list[str], list[int]]:
    """The labelled rows, or as many of them as are looked at."""
    rows = [(text, label) for text, label in zip(texts, labels, strict=True) if label is not None and label != -1]
    if len(rows) > MOST_ROWS:
        picked = np.random.default_rng(0).choice(len(rows), MOST_ROWS, replace=False)
        rows = [rows[index] for index in np.sort(picked)]
    return [text for text, _ in rows], [label for _, label in rows]


def sentences(examination: Examination, majority_score: float | None = None, tfidf: float | None = None) -> list[str]:
    """
    What a user should know of a teacher: a line of facts, and, where something is wrong, a line of what to do.

    Args:
        examination ([`Examination`]): the teacher.
        majority_score (`float`, *optional*): see [`majority`], of the rows that are held out, or, where these have no
            labels, of those that the teacher teaches.
        tfidf (`float`, *optional*): see [`tfidf_baseline`], of the same rows.
    """
    parts = [f"The teacher on {examination.taught.rows:,} rows that it teaches: {_facts(examination.taught)}"]
    if examination.held_out is not None:
        parts.append(f"on {examination.held_out.rows:,} rows for evaluation: {_facts(examination.held_out)}")
    baselines = {"the most frequent label": majority_score, "TF-IDF with logistic regression": tfidf}
    known = {name: score for name, score in baselines.items() if score is not None}
    if known:
        parts.append("beside it " + ", ".join(f"{name} {score:.3f}" for name, score in known.items()))
    advice = []
    if examination.memorised:
        advice.append(
            "The teacher has memorised the rows that it teaches, and its soft labels there hold little more than the "
            "labels: teach from unlabelled rows, raise the temperature, or train the teacher for fewer epochs."
        )
    passed = [name for name, score in known.items() if not examination.above(score)]
    if passed:
        # The lower of both says more.
        advice.append(
            f"The teacher is no better than {passed[0]} ({examination.judged.score:.3f} against "
            f"{known[passed[0]]:.3f}): a student learns little from it; give it another prompt, examples in its "
            "prompt, or take another teacher."
        )
    return ["; ".join(parts) + ".", *([" ".join(advice)] if advice else [])]


def _facts(found: Findings) -> str:
    """One set of rows."""
    score = "not scored"
    if found.score is not None:
        of = f" (of {found.labelled:,} labelled)" if found.labelled < found.rows else ""
        score = f"score {found.score:.3f}{of}, calibration error {found.calibration_error:.3f}"
    return f"{score}, mean entropy {found.entropy:.3f} nats, top probability above {SHARP} in {found.sharp:.0%}"
