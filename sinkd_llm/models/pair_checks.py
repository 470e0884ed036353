"""Two models that one is trained to follow the other: apart in memory and on disk, and of one scale."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from sinkd_llm.errors import InputError
from sinkd_llm.models.origin import name_of, origin_of
from sinkd_llm.models.partitioning import is_partitioned, waits_for_weights
from sinkd_llm.models.wrappers import unwrap


def check_apart(teacher: Any, student: Any) -> None:
    """
    Refuses a student that holds weights of its teacher: training would change both, or freezing the teacher stop it.

    Args:
        teacher (`PreTrainedModel` or `PeftModel`): the teacher.
        student (`PreTrainedModel` or `PeftModel`): the student, before an adapter is put on.

    Raises:
        InputError: naming the first weight that is in both.
    """
    theirs = {place for _, place in _places(teacher)}
    shared = next((name for name, place in _places(student) if place in theirs), None)
    if shared is None:
        return
    if unwrap(teacher) is unwrap(student):
        raise InputError(
            "Teacher and student are the same model, so training the student would change the teacher; pass a copy as "
            "the student (copy.deepcopy(model)), or name both and each is loaded for itself."
        )
    raise InputError(
        f"The student's weight {shared} is the teacher's own, so training would change the teacher, too; build the "
        "student from a copy (copy.deepcopy(teacher)), or let `student_layers` cut it."
    )


def _places(model: Any) -> Iterator[tuple[str, tuple[Any, int]]]:
    """Name of every weight, and where its numbers lie."""
    for name, weight in unwrap(model).named_parameters():
        if weight.numel() and not weight.is_meta:
            yield name, (weight.device, weight.untyped_storage().data_ptr())


def check_has_weights(model: Any, role: str) -> None:
    """
    Refuses a model that was built without weights, on torch's meta device.

    Weights that are offloaded to a disk, or that another process sends later, are not asked for.

    Args:
        model (`PreTrainedModel` or `PeftModel`): student or teacher.
        role (`str`): which of them, for the message.

    Raises:
        InputError: naming the first weight that has a shape only.
    """
    inner = unwrap(model)
    if is_partitioned(inner) or waits_for_weights() or getattr(inner, "hf_device_map", None):
        return
    empty = next((name for name, weight in inner.named_parameters() if weight.is_meta), None)
    if empty is not None:
        raise InputError(
            f"{role} has no weights: {empty} is on torch's meta device, which keeps only shapes. Build or load it "
            "outside of `torch.device('meta')`, or give its name."
        )


def check_trains(student: Any) -> None:
    """
    Refuses a student of which nothing would be trained.

    Raises:
        InputError: if every weight is frozen, as in an adapter that was loaded only to be used.
    """
    if any(weight.requires_grad for weight in student.parameters()):
        return
    raise InputError(
        "No weight of the student takes a gradient, so training would change nothing; "
        + (
            "load its adapter with is_trainable=True, or with sinkd_llm.load_model(folder, merge_adapter=False)."
            if hasattr(student, "peft_config")
            else "call model.requires_grad_(True), or give a `peft_config`."
        )
    )


def check_scale(predictions: Tensor) -> None:
    """
    Refuses a regression teacher that was trained on another scale than the one that is trained on here.

    Args:
        predictions (`Tensor`): the teacher's, for some of the training rows, whose true values lie in [0, 1].

    Raises:
        InputError: if more than a tenth of them lie outside of [-1, 2], where no fit of such values puts them.
    """
    if predictions.numel() and float(((predictions < -1) | (predictions > 2)).float().mean()) > 0.1:
        raise InputError(
            f"The teacher's predictions go from {float(predictions.min()):.3g} to {float(predictions.max()):.3g}, but "
            "the values that are learnt here lie in [0, 1]: it was fine-tuned on another scale, such as STS-B's own "
            "0 to 5. Fine-tune the teacher with sinkd finetune on this task."
        )


def folders_read(*read: Any) -> frozenset[Path]:
    """
    The folders on this machine that models were read from.

    Args:
        read (`str`, `PreTrainedModel`, `PeftModel` or `None`): names of models or caches, and loaded models.
    """
    found: set[Path] = set()
    for item in read:
        if item is None:
            continue
        names = [item]
        if not isinstance(item, str | Path):
            inner = unwrap(item)
            origin = origin_of(inner)
            names = [name_of(inner), origin.source.path if origin is not None and origin.source is not None else None]
        found |= {Path(name).expanduser().resolve() for name in names if name and Path(name).expanduser().is_dir()}
    return frozenset(found)


def check_not_read(folder: str | Path, read: Iterable[Path]) -> None:
    """
    Refuses to save where a model was read from: it would be lost, and an adapter's base with it.

    Raises:
        InputError: if `folder` is one of `read`.
    """
    if Path(folder).expanduser().resolve() in read:
        raise InputError(
            f"{folder} holds a model or cache that this run reads, so nothing is written there; give another folder."
        )
