"""Writes the data of the `quickstart` task: `python -m sinkd_llm.tasks.quickstart.generate`.

Statements of opinion; in a third of them the words of praise or blame are turned around by negation, contrast or
irony. A frame is a sentence pattern; it either keeps the polarity of its words or reverses it, and every frame gives
about as many positive as negative statements. So the frame alone tells nothing, and the adjectives alone are wrong
in every sixth statement: one has to combine them. Same seed, same bytes.
"""

import json
import random
from collections.abc import Callable
from pathlib import Path

from sinkd_llm.tasks.quickstart.more_vocabulary import MORE_DOMAINS
from sinkd_llm.tasks.quickstart.vocabulary import CHORES, DOMAINS, GENERAL, Aspect, Domain

SEED = 20240
TRAIN, VALIDATION, UNLABELLED = 600, 1000, 3000
# Validation rows that were drawn together with the training rows; the others are drawn after these.
HELD_OUT = 200
# Statements that a frame may make in its turn to find a new one, where many have been made.
TRIES = 20
NEGATIVE, POSITIVE = 0, 1

# How often a frame of a kind has its turn. Words that mean what they say are the larger part of any opinion, and
# what a student can learn from first.
TURNS = {"plain": 10, "negation": 1, "contrast": 1, "irony": 1}

Row = dict[str, str | int]
Write = Callable[[random.Random, Domain, int], str]


def _adjective(rng: random.Random, aspect: Aspect, label: int) -> str:
    return rng.choice(aspect.good if label == POSITIVE else aspect.bad)


def _of_label(rng: random.Random, pair: tuple[tuple[str, ...], tuple[str, ...]], label: int) -> str:
    """One phrase of a pair that is written (positive, negative)."""
    return rng.choice(pair[0] if label == POSITIVE else pair[1])


def _about_aspect(pattern: str, reverse: bool = False) -> Write:
    """A frame about one aspect, `{a}`, that means its adjective, or with `reverse` the opposite."""

    def write(rng: random.Random, domain: Domain, label: int) -> str:
        aspect = rng.choice(domain.aspects)
        adjective = _adjective(rng, aspect, 1 - label if reverse else label)
        verdict = _of_label(rng, domain.verdicts, label)
        return pattern.format(a=aspect.name, was=aspect.be, adjective=adjective, verdict=verdict)

    return write


def _about_thing(positive: str, negative: str | None = None, reverse: bool = False) -> Write:
    """A frame about the whole; `negative` is the pattern of a negative statement, if it differs."""

    def write(rng: random.Random, domain: Domain, label: int) -> str:
        said = 1 - label if reverse else label
        pattern = positive if label == POSITIVE or negative is None else negative
        return pattern.format(
            thing=domain.thing,
            first=domain.first[0],
            tried=domain.first[1],
            again=domain.again,
            general=_of_label(rng, GENERAL, said),
            event=_of_label(rng, domain.events, said),
            pleasure=_of_label(rng, domain.pleasures, said),
            ending=rng.choice(domain.endings),
            chore=rng.choice(CHORES),
        )

    return write


FRAMES: dict[str, tuple[Write, ...]] = {
    "plain": (
        _about_aspect("{a} {was} {adjective}."),
        _about_aspect("I thought {a} {was} {adjective}."),
        _about_aspect("{a} {was} {adjective}, and {verdict}."),
        _about_aspect("in short, {a} {was} {adjective}."),
        _about_aspect("I told all my friends that {a} {was} {adjective}."),
        _about_aspect("{verdict}: {a} {was} {adjective}."),
    ),
    "negation": (
        _about_aspect("{a} {was} not {adjective} at all.", reverse=True),
        _about_aspect("{a} {was} anything but {adjective}.", reverse=True),
        _about_aspect("{a} {was} far from {adjective}.", reverse=True),
        _about_aspect("nobody could call {a} {adjective}.", reverse=True),
        _about_aspect("there was nothing {adjective} about {a}.", reverse=True),
        _about_aspect("I would never describe {a} as {adjective}.", reverse=True),
        _about_aspect("it would be a lie to say that {a} {was} {adjective}.", reverse=True),
        _about_aspect("there is no denying that {a} {was} {adjective}."),
        _about_aspect("nobody can tell me that {a} {was} not {adjective}."),
        _about_aspect("I have never heard anyone deny that {a} {was} {adjective}."),
    ),
    "contrast": (
        _about_aspect("{a} {was} {adjective}, but {verdict}.", reverse=True),
        _about_aspect("even though {a} {was} {adjective}, {verdict}.", reverse=True),
        _about_aspect("{verdict}, even though {a} {was} {adjective}.", reverse=True),
        _about_aspect("granted, {a} {was} {adjective}; still, {verdict}.", reverse=True),
        _about_aspect("everyone told me that {a} would be {adjective}, and everyone was wrong.", reverse=True),
        _about_aspect("everyone told me that {a} would be {adjective}, and everyone was right."),
        _about_aspect("I had heard that {a} {was} {adjective}; that was not true.", reverse=True),
        _about_aspect("I had heard that {a} {was} {adjective}; that was no exaggeration."),
        _about_thing("the last {thing} I {tried} was {general}; this one was the exact opposite.", reverse=True),
        _about_thing("the last {thing} I {tried} was {general}; this one was no different."),
    ),
    "irony": (
        _about_thing("oh, lovely: {event}."),
        _about_thing("fair warning: {event}."),
        _about_thing("just what I needed: {event}."),
        _about_thing("if you enjoy {pleasure}, this {thing} is made for you."),
        _about_thing("if you cannot stand {pleasure}, keep away from this {thing}."),
        _about_thing(
            "the worst thing about this {thing} was {ending}.",
            "the best thing about this {thing} was {ending}.",
        ),
        _about_thing(
            "my only regret is that I did not {first} this {thing} sooner.",
            "my only regret is that I {tried} this {thing} at all.",
        ),
        _about_thing(
            "I would gladly {chore} for the chance to {again} this {thing} again.",
            "I would rather {chore} than {again} this {thing} again.",
        ),
    ),
}


def generate(seed: int = SEED) -> dict[str, list[Row]]:
    """
    The rows of all splits: `text`, `label` (0 negative, 1 positive) and `frame` (the kind of reversal).

    Each split has as many negative as positive rows and every frame with both labels in the same shares, and no
    sentence occurs twice. The statements of `unlabelled` speak of more kinds of things; only their texts are written.
    """
    rng = random.Random(seed)
    seen: set[str] = set()
    splits: dict[str, list[Row]] = {"train": [], "validation": [], "unlabelled": []}
    # Sorted by frame, every k-th sentence is held out: both splits see every frame with both labels.
    every = (TRAIN + HELD_OUT) // HELD_OUT
    for label in (NEGATIVE, POSITIVE):
        for place, row in enumerate(_statements(rng, DOMAINS, label, (TRAIN + HELD_OUT) // 2, seen, tries=1)):
            splits["validation" if place % every == every - 1 else "train"].append(row)
    for split in ("train", "validation"):
        rng.shuffle(splits[split])
    for split, domains, size in (
        ("validation", DOMAINS, VALIDATION - HELD_OUT),
        ("unlabelled", (*DOMAINS, *MORE_DOMAINS), UNLABELLED),
    ):
        more = []
        for label in (NEGATIVE, POSITIVE):
            more += _statements(rng, domains, label, size // 2, seen, TRIES)
        rng.shuffle(more)
        splits[split] += more
    return splits


def _statements(
    rng: random.Random, domains: tuple[Domain, ...], label: int, count: int, seen: set[str], tries: int
) -> list[Row]:
    """
    So many new statements of one label, sorted by frame; their texts are added to `seen`. A frame that finds nothing
    new to say in so many `tries` misses its turn.
    """
    frames = [(kind, write) for kind, writers in FRAMES.items() for write in writers for _ in range(TURNS[kind])]
    found: list[tuple[int, Row]] = []
    turn = 0
    while len(found) < count:
        number = turn % len(frames)
        kind, write = frames[number]
        turn += 1
        for _ in range(tries):
            text = write(rng, rng.choice(domains), label)
            text = text[0].upper() + text[1:]
            if text not in seen:
                seen.add(text)
                found.append((number, {"text": text, "label": label, "frame": kind}))
                break
    return [row for _, row in sorted(found, key=lambda entry: entry[0])]


def write(folder: Path) -> None:
    """Write `train.jsonl`, `validation.jsonl` and, one statement a line, `unlabelled.txt`."""
    splits = generate()
    texts = {
        "unlabelled.txt": "".join(f"{row['text']}\n" for row in splits.pop("unlabelled")),
        **{
            f"{split}.jsonl": "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            for split, rows in splits.items()
        },
    }
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    write(Path(__file__).parent)
