"""Whether a cache is for a run: rows read alike, the teacher that is meant, logits that are enough for the loss."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from sinkd_llm.errors import InputError
from sinkd_llm.models.kinds import kind_of, output_size
from sinkd_llm.objectives.couplings import PROPORTION
from sinkd_llm.teachers.cache.identity import tokenizer_hash, weights_hash
from sinkd_llm.teachers.cache.manifest import Manifest

if TYPE_CHECKING:
    from sinkd_llm.objectives import DistillationObjective

logger = logging.getLogger(__name__)


def check_reading(manifest: Manifest, folder: Path, student: Any, tokenizer: Any, reading: Mapping[str, Any]) -> None:
    """
    Makes sure that a run reads its rows as a cache of tokens did, and that its student scores the same things.

    Raises:
        InputError: with everything that differs.
    """
    rows, teacher, layout = manifest.rows, manifest.teacher, manifest.layout
    kind, outputs = kind_of(student).name, output_size(student)
    differs = [
        f"{name} is {value} here and {getattr(rows, name)} there"
        for name, value in reading.items()
        if value != getattr(rows, name)
    ]
    if rows.tokenizer != tokenizer_hash(tokenizer):
        differs.append("the tokenizer is another")
    if kind != teacher.model_kind:
        differs.append(f"the student is a {kind} and the cached teacher a {teacher.model_kind}")
    elif teacher.scores_classes and outputs != teacher.outputs:
        differs.append(f"the student has {outputs} classes and the cached teacher {teacher.outputs}")
    elif layout.content != "full" and outputs < layout.vocabulary_size:
        differs.append(
            f"the student's vocabulary has {outputs} ids and the cached rows {layout.vocabulary_size} (cache with "
            f"--vocabulary_size {outputs})"
        )
    if differs:
        raise InputError(
            f"The teacher cache {folder} is not for this run: {'; '.join(differs)}. Change the run, or cache "
            "the teacher again with this recipe."
        )


def check_same_teacher(
    manifest: Manifest, folder: Path, name: str | None, revision: str, quantised: str | None
) -> None:
    """
    Makes sure that the teacher that a run names is the cached one, see
    [`~sinkd_llm.teachers.cache.reader.CachedTeacher.check_teacher`].

    Raises:
        InputError: if it is another.
    """
    teacher = manifest.teacher
    cached = teacher.loading.get("quantised")
    if quantised is not None and quantised != cached:
        raise InputError(
            f"The run asks for a teacher in {quantised} (teacher_load_in_{quantised}), but the cache "
            f"{folder} is of one {f'in {cached}' if cached else 'that was not quantised'}; drop the setting, "
            "or cache the teacher again with this recipe."
        )
    if name is None:
        return
    try:
        weights = weights_hash(name, revision)
    except InputError:
        weights = None  # not here, which is what caches are for
    same = (name, revision) == (teacher.name, teacher.revision)
    if (weights is None and same) or (weights is not None and weights == teacher.weights):
        return
    what = "its files have changed since" if same else f"that is the cache of {teacher.name}"
    raise InputError(
        f"The run names the teacher {name} and the cache {folder}, but {what}; cache this teacher, or drop the name."
    )


def check_kept(
    manifest: Manifest,
    folder: Path,
    objective: "DistillationObjective",
    verbalizer_ids: Tensor | None,
    tolerance: float,
) -> None:
    """
    Makes sure that the loss can be computed from the ids that are kept of each row, and warns where it is known less
    well than `tolerance`, see [`Manifest.width_warning`].

    Raises:
        InputError: saying how to cache it.
    """
    layout = manifest.layout
    if layout.names_all_ids:
        return
    verbalizers = objective.vocabulary == "verbalizers"
    for name, temperature in objective.temperatures.items():
        if temperature not in layout.temperatures:
            known = ", ".join(f"{t:g}" for t in layout.temperatures)
            raise InputError(
                f"{name} is {temperature:g}, but the cache {folder} knows the mass outside of its ids at "
                f"{known} only; train at one of these, or cache with --temperatures {temperature:g}."
            )
    moved = objective.transported_settings
    if moved is not None and moved.transported_coupling == PROPORTION and not verbalizers:
        raise InputError(
            "transported_coupling is 'proportion', which needs the teacher's whole rows to take their mean; use "
            "another coupling, or cache with --content full."
        )
    if verbalizers and objective.transports:
        lost = sorted(set([] if verbalizer_ids is None else verbalizer_ids.tolist()) - set(layout.always))
        if lost:
            raise InputError(
                f"vocabulary is 'verbalizers', but the cache {folder} does not keep the ids {lost} of every "
                "row; cache with this recipe, which keeps them."
            )
    if verbalizers or objective.sinkhorn_weight == 0:
        return
    if objective.cost_norm != "l1":
        raise InputError(
            f"cost_norm is {objective.cost_norm!r}, which needs the teacher's whole rows; use l1, or cache with "
            "--content full."
        )
    if warning := manifest.width_warning(objective.sinkhorn_temperature, tolerance):
        logger.warning("The teacher cache %s is coarse: %s", folder, warning)
