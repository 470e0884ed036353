"""What the folder of a finished run says of itself: that its files are unchanged, and how its student was trained."""

import logging
from pathlib import Path
from typing import Any

from sinkd_llm.errors import InputError, shown
from sinkd_llm.integrity import check_manifest
from sinkd_llm.models.names import STUDENT_RECORD, ModelSource
from sinkd_llm.models.quantisation import quantisation_asked_for
from sinkd_llm.models.stored_config import read_json

logger = logging.getLogger(__name__)

# Measured on SmolLM2-135M, in parts of its largest logit (docs/models.md).
_ROUNDING = {"nf4": "17 %", "fp4": "17 %", "int8": "3 %"}


def check_unchanged(source: ModelSource) -> None:
    """
    Makes sure that a local folder's files are those that its manifest lists, if it has one.

    Raises:
        InputError: naming the first file that is missing or changed.
    """
    if source.kind in ("folder", "adapter"):
        check_manifest(Path(source.path))


def warn_of_quantisation(source: ModelSource, quantization_config: Any) -> None:
    """
    Warns where a student was trained over a quantised base and is loaded over another.

    Args:
        source ([`ModelSource`]): of the student.
        quantization_config (`BitsAndBytesConfig`, *optional*): what its base is loaded with now.
    """
    trained = trained_over(source)
    loaded = quantisation_asked_for(quantization_config)
    if trained is None or trained == loaded:
        return
    flag = {"nf4": "--load_in_4bit", "fp4": "--load_in_4bit --bnb_4bit_quant_type fp4", "int8": "--load_in_8bit"}
    logger.warning(
        "The student in %s was trained over a base in %s and is loaded over one %s: its logits differ from those that "
        "were trained by up to %s of the largest. Load it with %s for the model that was trained.",
        source.name,
        trained,
        f"in {loaded}" if loaded else "that is not quantised",
        _ROUNDING.get(trained, "some"),
        flag.get(trained, "the same quantisation"),
    )


def trained_over(source: ModelSource) -> str | None:
    """`"nf4"`, `"fp4"` or `"int8"` for a student that was trained over a base quantised so; `None` for all others."""
    file = Path(source.path) / STUDENT_RECORD
    if source.kind not in ("folder", "adapter") or not file.is_file():
        return None
    quantisation = read_json(file, "sinkd_llm, which keeps there how a student was trained").get("base_quantisation")
    if quantisation is not None and not isinstance(quantisation, str):
        raise InputError(
            f"{file}: base_quantisation is {shown(quantisation)}, but must be the name of a quantisation or null. "
            "Copy the file from the run's own folder again, or delete it if the base was not quantised."
        )
    return quantisation
