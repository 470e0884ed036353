"""The two formats of plain Transformers and PEFT code: a whole model, and an adapter without its base."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from sinkd_llm.errors import InputError
from sinkd_llm.models import load_model, load_tokenizer, resolve_model_source, save_student
from sinkd_llm.models.loading import adapter_base
from sinkd_llm.models.names import ADAPTER_CONFIG, ADAPTER_WEIGHTS, ModelSource
from sinkd_llm.models.outputs import probe_outputs
from sinkd_llm.models.quantisation import quantisation_of

if TYPE_CHECKING:
    from sinkd_llm.answering.torch_student import TorchStudent


def check_merged(student: "TorchStudent") -> None:
    """
    Refuses a student whose weights are packed: no adapter is folded into those.

    Raises:
        InputError: naming the packing.
    """
    if method := quantisation_of(student.model):
        raise InputError(
            f"The weights of the student are packed ({method}), and an adapter cannot be folded into packed weights "
            "without another rounding; give --format adapter."
        )


def write_merged(student: "TorchStudent", folder: Path) -> None:
    """
    Writes a student as a plain model, its adapter folded into its base, and its tokenizer.

    Args:
        student ([`TorchStudent`]): which [`check_merged`] has passed.
        folder (`Path`): exists.

    Raises:
        InputError: if the folder does not load as exactly the model that was written: bit by bit, in what it computes.
    """
    model = student.model
    save_student(model, student.tokenizer, folder)
    dtype = str(model.dtype).removeprefix("torch.")
    trusted = type(model).__module__.startswith("transformers_modules")
    again = load_model(folder, dtype=dtype, trust_remote_code=trusted, probe=False)
    if not torch.equal(probe_outputs(model), probe_outputs(again)):
        raise InputError(
            "The merged model computes other logits after it was loaded again, which should not be; please report "
            "this. Nothing was written."
        )


def check_adapter(source: ModelSource) -> None:
    """
    Refuses a student that is no adapter, or whose base no name gives.

    Raises:
        InputError: saying which, and what to do.
    """
    if source.kind != "adapter":
        raise InputError(f"{source.name} holds no adapter but a whole model; give --format merged.")
    base, _, inside = adapter_base(source)
    if inside:
        raise InputError(
            f"The base of the adapter in {source.name} lies beside it ({base}) because no name gives it: it was cut "
            "from another model, merged, or read from a GGUF file. An adapter alone could not be loaded; give "
            "--format merged."
        )
    resolve_model_source(base)


def write_adapter(source: ModelSource, folder: Path) -> None:
    """
    Copies an adapter as PEFT wrote it, and its tokenizer.

    Args:
        source ([`ModelSource`]): which [`check_adapter`] has passed.
        folder (`Path`): exists.
    """
    for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
        shutil.copy2(Path(source.path) / name, folder / name)
    load_tokenizer(source.path).save_pretrained(folder)
