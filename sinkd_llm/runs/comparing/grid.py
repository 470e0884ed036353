"""The grid of `sinkd compare`: which settings are varied, what is compared, and what is chosen."""

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from sinkd_llm.errors import InputError, nearest, shown
from sinkd_llm.report.comparison import CONTROL, STUDENT, TEACHER, WITHOUT_TEACHER
from sinkd_llm.training.settings.rules import RANGES
from sinkd_llm.yaml_files import read_yaml_mapping

KEYS = ("variants", "grid", "seeds", "baseline", "metric", "select_on", "heldout_share", "teacher_cache")
SELECT_ON = ("heldout", "none")
TEACHER_CACHES = ("auto", "none")
DEFAULT_SEEDS = (0, 1, 2)
DEFAULT_HELDOUT_SHARE = 0.1
MOST_RUNS = 10_000
RESERVED = (TEACHER, *WITHOUT_TEACHER)
# Belong to the comparison as a whole; and by what all cells are scored, which must be the same.
_NOT_VARIED = {
    "seed": "list the seeds under 'seeds'",
    "output_dir": "every run has a folder of its own in --output",
    "overwrite_output_dir": "every run has a folder of its own in --output",
    "resume_from_checkpoint": "a comparison goes on by itself",
    "heldout_share": "it stands beside the grid, for all cells",
    "max_eval_samples": "all cells are scored on the same rows; set it in the recipe",
    "env": "set it in the recipe",
    "config": "it is the recipe",
}


@dataclass(frozen=True)
class Cell:
    """
    A combination of settings, which is run with every seed.

    Attributes:
        variant (`str`): what is compared; the cells of one variant are what settings are chosen from.
        settings (`dict[str, Any]`): beside those of the recipe.
        kind (`str`): as of [`~sinkd_llm.report.comparison.ComparedRow`].
        varied (`tuple[str, ...]`): those of the settings that the grid varies.
    """

    variant: str
    settings: Mapping[str, Any]
    kind: str = STUDENT
    varied: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The variant with what the grid varies: `"kl, temperature=2.0"`."""
        chosen = [f"{name}={written(self.settings[name])}" for name in self.varied]
        return ", ".join(dict.fromkeys([*([self.variant] if self.variant else []), *chosen]))

    @property
    def folder(self) -> str:
        """A name for its folder, of its name and a hash of its settings."""
        plain = re.sub(r"[^a-z0-9.]+", "-", self.name.lower()).strip("-.")[:60]
        digest = hashlib.blake2b(repr((self.name, sorted(self.settings.items()))).encode(), digest_size=4)
        return f"{plain or 'cell'}-{digest.hexdigest()}"

    def flags(self, flags: Sequence[str]) -> list[str]:
        """Of the flags of all runs those that this cell does not overrule by a setting of its own."""
        return [word for name, words in by_setting(flags) if name not in self.settings for word in words]


@dataclass(frozen=True)
class Grid:
    """
    What `grid.yaml` says.

    Attributes:
        cells (`list[Cell]`): the combinations, the baseline's among them.
        baseline (`str`): the variant with which the others are compared.
        seeds (`tuple[int, ...]`): of every cell.
        metric (`str`, *optional*): what is compared. Default: the task's primary metric.
        select_on (`str`): `"heldout"`, or `"none"`: nothing is chosen.
        heldout_share (`float`, *optional*): the share of training rows that settings are chosen by. Default: what the
            recipe says, or 0.1; with `select_on` `"none"` nothing.
        teacher_cache (`str`): `"auto"`: the teacher runs once; `"none"`: it runs in every run.
    """

    cells: list[Cell]
    baseline: str
    seeds: tuple[int, ...]
    metric: str | None = None
    select_on: str = "heldout"
    heldout_share: float | None = None
    teacher_cache: str = "auto"
    varied: tuple[str, ...] = field(default=())

    @property
    def variants(self) -> list[str]:
        """What is compared, in order."""
        return list(dict.fromkeys(cell.variant for cell in self.cells))

    @property
    def chooses(self) -> bool:
        """Whether a variant has several cells, of which one is to be chosen."""
        return len(self.cells) > len(self.variants)


def read_grid(path: Path, seeds: list[int] | None = None) -> Grid:
    """
    The grid in a file.

    Args:
        path (`Path`): the file.
        seeds (`list[int]`, *optional*): in place of its own.

    Raises:
        InputError: for a file that is no YAML mapping; unknown keys; neither variants nor a grid; an empty one; values
            that are no list, or given twice; two variants with the same settings; a setting that is both in a variant
            and in the grid; settings that belong to the comparison; an unknown baseline; no seed.
    """
    content = read_yaml_mapping(path, "grid")
    for key in content:
        if key not in KEYS:
            raise InputError(f"{path} has the unknown key {shown(key)}.{nearest(key, KEYS)} It has {', '.join(KEYS)}.")
    variants = _variants(path, content.get("variants"))
    grid = _values(path, content.get("grid"))
    if not variants and not grid:
        raise InputError(
            f"{path} has neither 'variants' (name: {{setting: value}}) nor 'grid' (setting: [values]), so there is "
            "nothing to compare."
        )
    for name, settings in variants.items():
        if both := [setting for setting in settings if setting in grid]:
            raise InputError(f"{path}: the variant {name!r} sets {both[0]}, which the grid varies; leave one out.")
    cells = list(_cells(variants, grid))
    names = list(dict.fromkeys(cell.variant for cell in cells))
    baseline = content.get("baseline", names[0])
    if baseline not in names:
        raise InputError(
            f"{path}: baseline is {shown(baseline)}, and there is no such variant.{nearest(str(baseline), names)} "
            f"There are {', '.join(names[:20])}{', …' if len(names) > 20 else ''}."
        )
    made = Grid(
        cells,
        baseline,
        _seeds(path, content.get("seeds", list(DEFAULT_SEEDS)) if seeds is None else seeds, seeds is None),
        _text(path, "metric", content.get("metric")),
        str(_one_of(path, "select_on", content.get("select_on", "heldout"), SELECT_ON)),
        _share(path, content.get("heldout_share")),
        str(_one_of(path, "teacher_cache", content.get("teacher_cache", "auto"), TEACHER_CACHES)),
        tuple(grid),
    )
    if made.chooses and (made.select_on == "none" or made.heldout_share == 0):
        raise InputError(
            f"{path}: the variants have several cells each, of which the best is chosen on held-out training rows; "
            "leave select_on and heldout_share out, or name each combination as a variant."
        )
    if len(cells) * len(made.seeds) > MOST_RUNS:
        raise InputError(
            f"{path} asks for {len(cells):,} combinations with {len(made.seeds)} seeds each, which is more than "
            f"{MOST_RUNS:,} runs; leave some out."
        )
    return made


def by_setting(flags: Sequence[str]) -> list[tuple[str, list[str]]]:
    """The words of a command line by the settings that they are about: `--bf16` and `--no_bf16` are about `bf16`."""
    parts: list[tuple[str, list[str]]] = []
    for word in flags:
        if word.startswith("--") or not parts:
            name = word.removeprefix("--").split("=")[0].replace("-", "_")
            parts.append((name.removeprefix("no_"), [word]))
        else:
            parts[-1][1].append(word)
    return parts


def _cells(variants: Mapping[str, Mapping[str, Any]], grid: Mapping[str, list[Any]]) -> Iterator[Cell]:
    """Variants by grid; without variants every combination of the grid is one."""
    for values in product(*grid.values()):
        chosen = dict(zip(grid, values, strict=True))
        if not variants:
            yield Cell(Cell("", chosen, varied=tuple(grid)).name, chosen)
    for name, settings in variants.items():
        for values in product(*grid.values()):
            yield Cell(name, {**settings, **dict(zip(grid, values, strict=True))}, varied=tuple(grid))


def _variants(path: Path, given: Any) -> dict[str, dict[str, Any]]:
    if given is None:
        return {}
    if not isinstance(given, dict) or not given:
        raise InputError(f"{path}: 'variants' is {shown(given)}; it has a name and its settings on each line.")
    found: dict[str, dict[str, Any]] = {}
    for name, settings in given.items():
        if not str(name).strip() or not str(name).isprintable():
            raise InputError(f"{path}: a variant is called {shown(name)}; give it a name that can be printed.")
        if str(name) in RESERVED or str(name).startswith((CONTROL, f"{TEACHER} of ")):
            raise InputError(f"{path}: a variant is called {name!r}, as a row of the table is; give another name.")
        if not isinstance(settings, dict | None):
            raise InputError(
                f"{path}: the variant {name!r} is {shown(settings)}; give its settings, as {{alpha: 0.5}}, or {{}} "
                "for the recipe as it stands."
            )
        found[str(name)] = dict(settings or {})
        _check_settings(path, found[str(name)])
        for other, theirs in found.items():
            if other != str(name) and theirs == found[str(name)]:
                raise InputError(
                    f"{path}: the variants {other!r} and {name!r} have the same settings; leave one of them out."
                )
    return found


def _values(path: Path, given: Any) -> dict[str, list[Any]]:
    if given is None:
        return {}
    if not isinstance(given, dict) or not given:
        raise InputError(f"{path}: 'grid' is {shown(given)}; it has a setting and a list of values on each line.")
    for name, values in given.items():
        if not isinstance(values, list):
            raise InputError(f"{path}: the grid's {name} is {shown(values)}; give a list of values, as [1.0, 2.0].")
        if not values:
            raise InputError(f"{path}: the grid's {name} is an empty list; give at least one value.")
        for index, value in enumerate(values):
            # 1 and 1.0 are one value, and so is `true` only to Python.
            if any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in values[:index]):
                raise InputError(f"{path}: the grid's {name} holds {shown(value)} twice; leave one out.")
    _check_settings(path, given)
    return dict(given)


def _check_settings(path: Path, names: Mapping[str, Any]) -> None:
    for name in names:
        if name in _NOT_VARIED:
            raise InputError(f"{path} varies {name}, but {_NOT_VARIED[name]}.")


def _seeds(path: Path, given: Any, from_file: bool) -> tuple[int, ...]:
    what = f"{path}: seeds" if from_file else "--seeds"
    if not isinstance(given, list) or not given:
        raise InputError(f"{what} is {shown(given)}; give a list with at least one seed, as [0, 1, 2].")
    for index, seed in enumerate(given):
        if isinstance(seed, bool) or not isinstance(seed, int) or RANGES["seed"].refusal(seed) is not None:
            raise InputError(f"{what} holds {shown(seed)}; {RANGES['seed'].in_words()}.")
        if seed in given[:index]:
            raise InputError(f"{what} holds {seed} twice, and one run is no second one; leave one out.")
    return tuple(given)


def _share(path: Path, given: Any) -> float | None:
    if given is None:
        return None
    number = isinstance(given, int | float) and not isinstance(given, bool)
    if not number or RANGES["heldout_share"].refusal(given) is not None:
        raise InputError(f"{path}: heldout_share is {shown(given)}; {RANGES['heldout_share'].in_words()}.")
    return float(given)


def _one_of(path: Path, key: str, given: Any, known: tuple[str, ...]) -> Any:
    if given in known:
        return given
    if key == "select_on" and given in ("test", "validation", "evaluation", "eval"):
        raise InputError(
            f"{path}: select_on is {shown(given)}, but a score on the rows that settings were chosen by says nothing "
            "of other rows; settings are chosen on held-out training rows (heldout)."
        )
    raise InputError(f"{path}: {key} is {shown(given)}; give one of {', '.join(known)}.")


def _text(path: Path, key: str, given: Any) -> str | None:
    if given is not None and not isinstance(given, str):
        raise InputError(f"{path}: {key} is {shown(given)}; give a name.")
    return given


def written(value: Any) -> str:
    """A value as YAML has it, on one line."""
    return str(value).lower() if isinstance(value, bool) or value is None else str(value)
