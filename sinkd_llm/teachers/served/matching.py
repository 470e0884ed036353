"""From what a server says to the choices of a row: an answer's text, or the likeliest first tokens of an answer.

Shape suffixes: C choices of a row.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from sinkd_llm.teachers.answer_texts import choice_meant, folded, matched
from sinkd_llm.values import shown

# A token that is the beginning of a choice, from this probability on, says that the choice has several tokens.
SPLIT_FROM = 0.01


@dataclass(frozen=True)
class Seen:
    """
    What the likeliest first tokens say of a row's choices.

    Attributes:
        scores_C (`list[float]`, *optional*): log-probabilities of the choices; `None` if they cannot be known.
        unseen (`float`): the mass of the tokens that the server did not show, in [0, 1].
        problem (`str`): why there are no scores, or `""`.
    """

    scores_C: list[float] | None
    unseen: float
    problem: str = ""


def choices_seen(top: Sequence[tuple[str, float]], choices: tuple[str, ...], *, continued: bool = False) -> Seen:
    """
    The choices of a row among the likeliest first tokens of an answer.

    Where the prompt is continued and a token is a choice to the character, its delimiter included, such tokens alone
    count, as for a local model. Elsewhere a token counts for the choice that it is, as
    [`~sinkd_llm.teachers.answer_texts.choice_meant`] reads it, and several tokens of one choice add up.

    Choices that are not among the tokens share the mass that was not shown in equal parts, each at most the smallest
    probability that was shown: an upper bound. Where a token that begins a choice has a probability of [`SPLIT_FROM`]
    or more and no token is this choice, the choice has several tokens, whose likelihood is not known from the first
    one: there are no scores. There are none, either, where no choice is among the tokens.

    Args:
        top (`Sequence[tuple[str, float]]`): tokens and their log-probabilities.
        choices (`tuple[str, ...]`): of the row.
        continued (`bool`, *optional*, defaults to `False`): the tokens go on with the prompt (a completion), and do
            not begin an answer to it (a chat).
    """
    exactly = continued and any(token in choices for token, _ in top)
    names = list(choices) if exactly else [folded(choice) for choice in choices]
    mass_C = [0.0] * len(choices)
    begun: dict[int, str] = {}
    for token, logprob in top:
        if exactly:
            index, text = (choices.index(token) if token in choices else None), token
        else:
            index, text = choice_meant(token, choices), folded(token)
        if index is not None:
            mass_C[index] += math.exp(logprob)
        if text.strip() and math.exp(logprob) >= SPLIT_FROM:
            begun |= {c: token for c, name in enumerate(names) if c != index and name.startswith(text)}
    unseen = min(1.0, max(0.0, 1 - sum(math.exp(logprob) for _, logprob in top)))
    for c, token in begun.items():
        if mass_C[c] == 0:
            problem = (
                f"the choice {shown(choices[c].strip())} has several tokens, of which {shown(token)} is the first"
            )
            return Seen(None, unseen, problem)
    missing = mass_C.count(0.0)
    if missing == len(mass_C):
        problem = f"no choice is among the {len(top)} likeliest tokens; the first is {shown(top[0][0])}"
        return Seen(None, unseen, problem)
    share = min(unseen / missing, math.exp(min(logprob for _, logprob in top))) if missing else 0.0
    masses = [mass or share for mass in mass_C]
    return Seen([math.log(mass) if mass > 0 else -math.inf for mass in masses], unseen)


def frequencies(texts: Sequence[str], choices: tuple[str, ...]) -> tuple[list[float] | None, list[str]]:
    """
    How often each choice was answered.

    Returns:
        `tuple`: the logarithms of the shares among the answers that are a choice, `None` if none is; and the answers
        that are no choice.
    """
    found = [(matched(text, choices), text) for text in texts]
    other = [text for index, text in found if index is None]
    count = len(texts) - len(other)
    if not count:
        return None, other
    numbers = [sum(index == c for index, _ in found) for c in range(len(choices))]
    return [math.log(n / count) if n else -math.inf for n in numbers], other
