"""The formats of exports: what each takes, how it is written, how it is loaded again, and what its README says."""

import importlib.util
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sinkd_llm.answering.load import load_student
from sinkd_llm.answering.student import Student
from sinkd_llm.errors import InputError
from sinkd_llm.exporting import gguf_file, onnx_graph, onnx_int8, safetensors_folders
from sinkd_llm.models import load_model, load_tokenizer
from sinkd_llm.models.kinds import kind_of
from sinkd_llm.models.names import ModelSource

if TYPE_CHECKING:
    from sinkd_llm.answering.torch_student import TorchStudent


@dataclass(frozen=True)
class Exported:
    """
    A student that is being exported.

    Args:
        student ([`TorchStudent`]): in memory, adapters folded in.
        source ([`ModelSource`]): where it was loaded from.
        numbers (`str`): the type of a GGUF file's matrices.
    """

    student: "TorchStudent"
    source: ModelSource
    numbers: str


@dataclass(frozen=True)
class Format:
    """
    A format of exports.

    Args:
        exact (`Callable[[Exported], bool]`): whether it keeps the student's numbers, so that rounding alone differs.
        packages (`tuple[str, ...]`): that it needs, of the extra `export`.
        check, write: refuse a student that it does not take; write one to a folder.
        load (`Callable[[Path, Exported], Student]`): the export as a student, as it will be used.
        room (`float`): bytes that writing takes, for each of the student in memory.
        use (`str`): how the folder is loaded from within, in Markdown; `{auto}` is the class of Transformers,
            `{labels}` its argument for a head of so many classes, and `{rows}` are example rows.
    """

    exact: Callable[[Exported], bool]
    packages: tuple[str, ...]
    check: Callable[[Exported], None]
    write: Callable[[Exported, Path], None]
    load: Callable[[Path, Exported], Student]
    room: float
    use: str


def check_packages(name: str) -> None:
    """
    Refuses a format whose packages are not installed.

    Raises:
        InputError: naming the first, and how to install it.
    """
    for package in FORMATS[name].packages:
        if importlib.util.find_spec(package) is None:
            raise InputError(
                f"--format {name} needs {package}, which is not installed. Install it with: "
                "pip install 'sinkd-llm[export]'"
            )


def auto_class(student: "TorchStudent") -> str:
    """The class of Transformers that loads the student."""
    return kind_of(student.model).auto_class


def _write_int8(exported: Exported, folder: Path) -> None:
    onnx_graph.write_onnx(exported.student, folder)
    onnx_int8.quantise(folder, onnx_graph.reading_of(exported.student))


def _from_folder(folder: Path, exported: Exported) -> Student:
    model: Any = exported.student.model
    return load_student(
        folder, dtype=str(model.dtype).removeprefix("torch."), trust_remote_code=_has_own_code(model), probe=False
    )


def _from_onnx(folder: Path, exported: Exported) -> Student:
    from sinkd_llm.answering.onnx_student import OnnxStudent

    student = exported.student
    # Both are measured on as many threads.
    return OnnxStudent(folder, student.task, student.facts, threads=torch.get_num_threads())


def _from_gguf(folder: Path, exported: Exported) -> Student:
    """The file as Transformers reads it; llama.cpp need not be here."""
    from sinkd_llm.answering.torch_student import TorchStudent

    student, file = exported.student, folder / gguf_file.GGUF_FILE
    with _cache_in(folder):
        tokenizer = load_tokenizer(file)
        gguf_file.check_read_back(student.tokenizer, tokenizer)
        return TorchStudent(load_model(file, dtype="float32", probe=False), tokenizer, student.task, student.facts)


@contextmanager
def _cache_in(folder: Path) -> Iterator[None]:
    """Within, converted files are kept in `folder`, and then removed: nobody will ask for them again."""
    before = os.environ.get("SINKD_CACHE_DIR")
    with tempfile.TemporaryDirectory(prefix=".read-back-", dir=folder) as cache:
        os.environ["SINKD_CACHE_DIR"] = cache
        try:
            yield
        finally:
            if before is None:
                del os.environ["SINKD_CACHE_DIR"]
            else:
                os.environ["SINKD_CACHE_DIR"] = before


def _has_own_code(model: Any) -> bool:
    return type(model).__module__.startswith("transformers_modules")


def _always(exported: Exported) -> bool:
    return True


def _never(exported: Exported) -> bool:
    return False


_ONNX_USE = """ONNX Runtime and `tokenizers` run it, without torch:

```python
from sinkd_llm import load_student

student = load_student(".")
for answer in student.predict({rows}):
    print(answer.choice, answer.probability)
```

`model.onnx` takes `input_ids` and `attention_mask` (int64, rows x tokens) and what else its inputs name, and gives
`logits`; `tokenizer.json` is of the `tokenizers` package."""

FORMATS = {
    "merged": Format(
        exact=_always,
        packages=(),
        check=lambda exported: safetensors_folders.check_merged(exported.student),
        write=lambda exported, folder: safetensors_folders.write_merged(exported.student, folder),
        load=_from_folder,
        room=1.1,
        use="""Transformers, and servers that take its folders, load it as any other model:

```python
from transformers import AutoTokenizer, {auto}

tokenizer = AutoTokenizer.from_pretrained(".")
model = {auto}.from_pretrained(".")
```""",
    ),
    "adapter": Format(
        exact=_always,
        packages=(),
        check=lambda exported: safetensors_folders.check_adapter(exported.source),
        write=lambda exported, folder: safetensors_folders.write_adapter(exported.source, folder),
        load=_from_folder,
        room=0.5,
        use="""PEFT puts it on its base, which `adapter_config.json` names (`base_model_name_or_path`):

```python
from peft import PeftConfig, PeftModel
from transformers import AutoTokenizer, {auto}

base = PeftConfig.from_pretrained(".").base_model_name_or_path
model = PeftModel.from_pretrained({auto}.from_pretrained(base{labels}), ".")
tokenizer = AutoTokenizer.from_pretrained(".")
```""",
    ),
    "onnx": Format(
        exact=_always,
        packages=("onnx", "onnxscript", "onnxruntime"),
        check=lambda exported: onnx_graph.check_exportable(exported.student),
        write=lambda exported, folder: onnx_graph.write_onnx(exported.student, folder),
        load=_from_onnx,
        room=1.2,
        use=_ONNX_USE,
    ),
    "onnx-int8": Format(
        exact=_never,
        packages=("onnx", "onnxscript", "onnxruntime"),
        check=lambda exported: onnx_graph.check_exportable(exported.student),
        write=_write_int8,
        load=_from_onnx,
        room=2.5,
        use=_ONNX_USE
        + """

Linear layers (MatMul, Gemm) are computed in eight bits, with a scale for each output; embeddings are stored in eight
bits and computed in fp32. Give ONNX Runtime one row at a time, as `load_student` does: the scale of activations is one
for a forward, so that rows of one batch would change each other's answers.""",
    ),
    "gguf": Format(
        exact=lambda exported: exported.numbers == "f32",
        packages=(),
        check=lambda exported: gguf_file.check_gguf(exported.student),
        write=lambda exported, folder: gguf_file.write_gguf(exported.student, folder, exported.numbers),
        load=_from_gguf,
        room=2.2,  # what is read back lies beside it for a while
        use="""llama.cpp runs it:

```bash
llama-server --model model.gguf
```

Its answers are the choices that follow the prompt of `sinkd_answers.json`, ranked by their log-likelihood;
`sinkd evaluate --model_name_or_path model.gguf --task TASK` ranks them here.""",
    ),
}
