"""`manifest.json`: what a cache holds, of which teacher, over which rows, and how much lies outside of it."""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sinkd_llm.errors import InputError
from sinkd_llm.files import write_whole
from sinkd_llm.teachers.cache.layout import CONTENTS, ENCODINGS, IN_GROUPS, OVER_CHOICES, CacheLayout

MANIFEST = "manifest.json"
FORMAT = 1


@dataclass(frozen=True)
class TeacherIdentity:
    """
    Which teacher: its name and revision, the hash of its files (`None` on the hub), and what it scores.

    `classes` are the names of a classification head's classes in their order, and empty if it gives them none; `None`
    for a teacher without classes, and in a cache that an earlier version wrote.

    `answers` is the hash of what was answered, where that came from a server, a file or other caches; `None` for a
    model that ran here, and in a cache that an earlier version wrote.
    """

    name: str
    revision: str
    weights: str | None
    model_kind: str
    outputs: int
    scores_classes: bool
    loading: dict[str, str] = field(default_factory=dict)
    classes: tuple[str, ...] | None = None
    answers: str | None = None


@dataclass(frozen=True)
class RowsIdentity:
    """Which rows, read in which way. `cut_at` is `max_length`, or the teacher's context where that is shorter."""

    task: str
    hash: str
    examples: int
    tokenizer: str
    max_length: int | None
    cut_at: int | None
    apply_chat_template: bool
    add_eos: bool | None


@dataclass
class Manifest:
    """The manifest of a cache.

    Args:
        teacher, rows, layout: what it is the cache of; a difference makes it another cache.
        shards (`list[dict]`): of each file of rows its name, length, checksum, the examples `[start, stop)` in
            caching order, its tokens, and its sums of tail masses. In the order of their examples; while the cache is
            being written, examples may be missing anywhere.
        index (`dict`, *optional*): the file that says where an example's rows are. Written last.
        tail_at (`list[int]`): the K at which tail masses are sampled.
        teacher_score (`dict`, *optional*): the teacher's row of the results table, and what it predicted.
        versions (`dict`): of the libraries that wrote it.
    """

    teacher: TeacherIdentity
    rows: RowsIdentity
    layout: CacheLayout
    shards: list[dict[str, Any]] = field(default_factory=list)
    index: dict[str, Any] | None = None
    tail_at: list[int] = field(default_factory=list)
    teacher_score: dict[str, Any] | None = None
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        return self.index is not None

    @property
    def done(self) -> int:
        """Examples that are in its shards."""
        return sum(shard["stop"] - shard["start"] for shard in self.shards)

    def gaps(self) -> list[tuple[int, int]]:
        """The examples `[start, stop)` in caching order that are in none of its shards."""
        edges = [0, *(edge for shard in self.shards for edge in (shard["start"], shard["stop"])), self.rows.examples]
        return [(start, stop) for start, stop in zip(edges[::2], edges[1::2], strict=True) if start < stop]

    def add_shards(self, records: Iterable[dict[str, Any]]) -> None:
        """Adds records of shards at their places; a record of examples that it has already is left out."""
        for record in sorted(records, key=lambda record: int(record["start"])):
            if any(start <= record["start"] and record["stop"] <= stop for start, stop in self.gaps()):
                self.shards.append(record)
                self.shards.sort(key=lambda shard: int(shard["start"]))

    @property
    def tokens(self) -> int:
        return sum(shard["tokens"] for shard in self.shards)

    @property
    def bytes(self) -> int:
        """Of the rows and the index."""
        return sum(record["bytes"] for record in (*self.shards, *([self.index] if self.index else [])))

    def mean_tail(self, temperature: float) -> float:
        """The mass that the teacher gives to the ids that are not kept, mean over all tokens."""
        i = self.layout.temperatures.index(temperature)
        return sum(shard["tail_sums"][i] for shard in self.shards) / max(self.tokens, 1)

    def sampled_tails(self, temperature: float) -> dict[int, float]:
        """The same at other K, over a sample of the tokens."""
        i = self.layout.temperatures.index(temperature)
        count = max(sum(shard["sampled_tokens"] for shard in self.shards), 1)
        return {
            k: sum(shard["sampled_tail_sums"][i][j] for shard in self.shards) / count
            for j, k in enumerate(self.tail_at)
        }

    def cost_width(self, temperature: float) -> float:
        """Bound of the mean width of the cost's interval, over any student: 2 min(tau_p, tau_q) <= 2 tau_p, and what
        the encoding of the logits adds."""
        return 2 * self.mean_tail(temperature) + self.layout.cost_error(temperature)

    def sufficient_k(self, temperature: float, tolerance: float) -> int | None:
        """The smallest sampled K at which the width is at most `tolerance`, or `None` if none does."""
        tails = self.sampled_tails(temperature)
        left = tolerance - self.layout.cost_error(temperature)
        return next((k for k in self.tail_at if 2 * tails[k] <= left), None)

    def width_warning(self, temperature: float, tolerance: float) -> str | None:
        """
        What to say where the interval of the transport cost is wider than `tolerance` on average, or `None`.

        Args:
            temperature (`float`): of the transport term.
            tolerance (`float`): in units of the cost, which lies in [0, 2].
        """
        if temperature not in self.layout.temperatures or self.cost_width(temperature) <= tolerance:
            return None
        k = self.sufficient_k(temperature, tolerance)
        advice = f"--top_k {k}" if k is not None and k <= self.layout.vocabulary_size // 4 else "--content full"
        return (
            f"at temperature {temperature:g} the teacher gives {self.mean_tail(temperature):.1%} of its mass to ids "
            f"that are not cached, so the transport cost (0 to 2) is known only to within "
            f"{self.cost_width(temperature):.3f}; {advice} would bring that to {tolerance:g} or less, and a lower "
            "sinkhorn_temperature leaves less outside, too."
        )

    def differences(self, other: "Manifest") -> list[str]:
        """What another cache has otherwise, in words."""
        found = []
        for part in ("teacher", "rows", "layout"):
            ours, theirs = asdict(getattr(self, part)), asdict(getattr(other, part))
            if part == "teacher" and None in (ours["classes"], theirs["classes"]):
                ours["classes"] = theirs["classes"] = None  # an earlier version did not record them
            theirs["answers"] = ours.get("answers")  # of another teacher or of other rows they are others, too
            found += [f"{part}.{key}: {ours[key]} and {theirs[key]}" for key in ours if ours[key] != theirs[key]]
        if not found and self.teacher.answers != other.teacher.answers:
            unknown = None in (self.teacher.answers, other.teacher.answers)
            other_answers = "another score of the teacher, or other answers to the rows"
            what = "an earlier version did not record them" if unknown else other_answers
            found.append(f"teacher.answers: {what}")
        return found

    def save(self, folder: Path, name: str = MANIFEST) -> None:
        """Replaces the manifest of `folder`, or a part of it under another name, as a whole."""
        content = {"format": FORMAT, "complete": self.complete, **asdict(self)}
        write_whole(folder / name, json.dumps(content, indent=1, ensure_ascii=False) + "\n")

    @classmethod
    def load(cls, folder: Path, name: str = MANIFEST) -> "Manifest":
        """
        The manifest of `folder`, or a part of it under another name.

        Raises:
            InputError: if there is none, or it is not one that this version writes.
        """
        path = folder / name
        if not path.is_file():
            raise InputError(
                f"{folder} is no teacher cache: it has no {name}. 'sinkd cache --config recipe.yaml --output "
                f"{folder}' writes one."
            )
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if type(content["format"]) is not int or content["format"] != FORMAT:
                raise InputError(
                    f"{path} is of format {content['format']} and this version reads {FORMAT}; write the cache again."
                )
            _check(content)
            layout: Mapping[str, Any] = content["layout"]
            classes = content["teacher"].get("classes")
            return cls(
                TeacherIdentity(**{**content["teacher"], "classes": None if classes is None else tuple(classes)}),
                RowsIdentity(**content["rows"]),
                CacheLayout(
                    **{**layout, "temperatures": tuple(layout["temperatures"]), "always": tuple(layout["always"])}
                ),
                *(content[key] for key in ("shards", "index", "tail_at", "teacher_score", "versions")),
            )
        except InputError as error:
            if str(path) in str(error):
                raise
            raise InputError(f"{path} is damaged ({error}); write the cache again with --overwrite.") from error
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise InputError(
                f"{path} is damaged ({type(error).__name__}: {error}); write the cache again with --overwrite."
            ) from error


# Of each part of the file, its keys and their values.
_NUMBER = (int, float)
_FIELDS: dict[str, dict[str, Any]] = {
    "teacher": {
        **dict.fromkeys(("name", "revision", "model_kind"), str),
        **{"weights": (str, type(None)), "outputs": int, "scores_classes": bool, "loading": dict},
    },
    "rows": {
        **dict.fromkeys(("task", "hash", "tokenizer"), str),
        **{"examples": int, "max_length": (int, type(None)), "cut_at": (int, type(None))},
        **{"apply_chat_template": bool, "add_eos": (bool, type(None))},
    },
    "layout": {
        **{"content": str, "vocabulary_size": int, "k": int, "temperatures": list, "encoding": str, "always": list},
    },
    "shard": {
        **{"file": str, "bytes": int, "checksum": str, "start": int, "stop": int, "tokens": int},
        **{"tail_sums": list, "sampled_tokens": int, "sampled_tail_sums": list},
    },
    "index": {"file": str, "bytes": int, "checksum": str},
    "teacher_score": {"rows": str, "predictions": (list, type(None)), "name": str, "metrics": dict},
}


def _check(content: Mapping[str, Any]) -> None:
    """Raises `ValueError` for the first value of a manifest that is of another kind than this version writes."""
    for part in ("teacher", "rows", "layout"):
        _check_fields(part, content[part])
    if content["teacher"].get("classes") is not None:
        _check_list("teacher.classes", content["teacher"]["classes"], str)
    if not _is(content["teacher"].get("answers"), (str, type(None))):
        raise ValueError(f"teacher.answers is {str(content['teacher']['answers'])[:40]!r}")
    layout, temperatures = content["layout"], content["layout"]["temperatures"]
    _check_list("layout.temperatures", temperatures, _NUMBER)
    _check_list("layout.always", layout["always"], int)
    for name, known in (("content", (*CONTENTS, OVER_CHOICES, IN_GROUPS)), ("encoding", ENCODINGS)):
        if layout[name] not in known:
            raise ValueError(f"layout.{name} is {layout[name]!r}")
    _check_list("tail_at", content["tail_at"], int)
    _check_list("shards", content["shards"], dict)
    stop = held = 0
    for number, shard in enumerate(content["shards"]):
        _check_fields("shard", shard)
        if not stop <= shard["start"] < shard["stop"] <= content["rows"]["examples"]:
            raise ValueError(f"shard {number} holds the examples {shard['start']} to {shard['stop']}")
        stop, held = shard["stop"], held + shard["stop"] - shard["start"]
        _check_list("tail_sums", shard["tail_sums"], _NUMBER, len(temperatures))
        _check_list("sampled_tail_sums", shard["sampled_tail_sums"], list, len(temperatures))
        for sums in shard["sampled_tail_sums"]:
            _check_list("sampled_tail_sums", sums, _NUMBER, len(content["tail_at"]))
    if content["index"] is not None:
        _check_fields("index", content["index"])
        if held != content["rows"]["examples"]:
            raise ValueError(f"its shards hold {held} of {content['rows']['examples']} examples")
    if not isinstance(content["versions"], dict):
        raise ValueError("versions is no mapping")
    score = content["teacher_score"]
    if score is not None:
        _check_fields("teacher_score", score)
        for name, value in score["metrics"].items():
            if not _is(value, _NUMBER):
                raise ValueError(f"teacher_score.metrics.{name} is {value!r}")
        _check_choices(score["predictions"], score.get("keys"), score.get("probabilities"), score.get("prints"))
        for name in ("parameters", "trainable_parameters", "num_examples", "seconds"):
            if not _is(score.get(name, 0), _NUMBER):
                raise ValueError(f"teacher_score.{name} is {score[name]!r}")


def _check_choices(predictions: Any, keys: Any, probabilities: Any, prints: Any) -> None:
    """What was read of each row, in hexadecimal digits, beside the choice of the row and its probabilities."""
    if keys is None:
        return
    _check_list("teacher_score.keys", keys, str)
    _check_list("teacher_score.predictions", predictions, int, len(keys))
    if any(index < 0 for index in predictions):
        raise ValueError(f"teacher_score.predictions has {min(predictions)}, which is no choice")
    for key in keys:
        bytes.fromhex(key)
    if prints is not None:
        _check_list("teacher_score.prints", prints, int, len(keys))
        if any(not 0 <= one < 2**63 for one in prints):
            raise ValueError("teacher_score.prints has a number that is not of 63 bits")
    if probabilities is not None:
        _check_list("teacher_score.probabilities", probabilities, list, len(keys))
        for row in probabilities:
            _check_list("teacher_score.probabilities", row, _NUMBER)


def _check_fields(part: str, values: Any) -> None:
    if not isinstance(values, dict):
        raise ValueError(f"{part} is {str(values)[:40]!r}")
    for name, kind in _FIELDS[part].items():
        if not _is(values[name], kind):
            raise ValueError(f"{part}.{name} is {str(values[name])[:40]!r}")
        if kind is int and values[name] < 0:
            raise ValueError(f"{part}.{name} is {values[name]}")
        if name == "file" and (Path(values[name]).name != values[name] or not values[name]):
            raise ValueError(f"{part}.file is {values[name]!r}, no name of a file beside it")


def _check_list(name: str, values: Any, kind: Any, length: int | None = None) -> None:
    if not isinstance(values, list) or not all(_is(value, kind) for value in values):
        raise ValueError(f"{name} is {str(values)[:40]!r}")
    if length is not None and len(values) != length:
        raise ValueError(f"{name} has {len(values)} entries instead of {length}")


def _is(value: Any, kind: Any) -> bool:
    """As `isinstance`, but a boolean is no number, and NaN neither."""
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if isinstance(value, bool):
        return bool in kinds
    if isinstance(value, float) and not math.isfinite(value):
        return False
    return isinstance(value, kinds)
