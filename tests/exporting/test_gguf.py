"""A decoder as a GGUF file: read back bit by bit, and what is not written is refused by name."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from tokenizers import pre_tokenizers
from transformers import PreTrainedTokenizerFast

from sinkd_llm import load_student
from sinkd_llm.answering.torch_student import TorchStudent
from sinkd_llm.errors import InputError
from sinkd_llm.exporting.gguf_file import GGUF_FILE, check_gguf, check_read_back, write_gguf
from sinkd_llm.models import load_model, load_tokenizer
from sinkd_llm.models.outputs import difference, probe_outputs
from tests.support import models
from tests.support.task_files import write_task


def student(folder: Path, family: str = "llama", **changes: Any) -> TorchStudent:
    # More than the tokenizer gives, as many models have them; Qwen's tokenizer brings tokens of its own.
    model = models.decoder(family, layers=1, vocab=400, **changes)
    models.save(folder / family, model, models.word_tokenizer())
    return cast(TorchStudent, load_student(folder / family, write_task(folder / "task.yaml")))


def written(made: TorchStudent, folder: Path, numbers: str) -> Path:
    check_gguf(made)
    folder.mkdir(exist_ok=True)
    write_gguf(made, folder, numbers)
    return folder / GGUF_FILE


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SINKD_CACHE_DIR", str(tmp_path / "cache"))


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("llama", {}),
        ("llama", {"tie_word_embeddings": True, "rope_parameters": {"rope_type": "default", "rope_theta": 1e5}}),
        ("qwen2", {}),
        ("qwen3", {"head_dim": 128}),
    ],
)
def test_in_fp32_it_is_read_back_bit_by_bit(family: str, changes: dict[str, Any], tmp_path: Path) -> None:
    made = student(tmp_path, family, **changes)
    file = written(made, tmp_path / "out", "f32")
    again = load_model(file)
    assert torch.equal(probe_outputs(made.model), probe_outputs(again))
    check_read_back(made.tokenizer, load_tokenizer(file))
    assert again.config.max_position_embeddings == 128


def test_a_tokenizer_that_reads_otherwise_is_refused(tmp_path: Path) -> None:
    tokenizer = models.word_tokenizer()
    with pytest.raises(InputError, match="has the number"):
        check_read_back(tokenizer, models.marked_tokenizer("bert"))
    other = models.train_tokenizer(["<pad>", "<eos>"])
    parts = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=True)]
    other.pre_tokenizer = pre_tokenizers.Sequence(parts)
    with pytest.raises(InputError, match="cuts texts in another way"):
        check_read_back(tokenizer, PreTrainedTokenizerFast(tokenizer_object=other))


def test_fewer_bits_are_smaller_and_near(tmp_path: Path) -> None:
    made = student(tmp_path)
    expected = probe_outputs(made.model)
    sizes, off = [], []
    for numbers in ("f32", "f16", "q8_0"):
        file = written(made, tmp_path / numbers, numbers)
        sizes.append(file.stat().st_size)
        off.append(difference(expected, probe_outputs(load_model(file))))
    assert sizes[0] > sizes[1] > sizes[2]
    assert off[0] == 0 < off[1] < 1e-3 < off[2] < 2e-2


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda config: setattr(config, "model_type", "gpt2"), "of the type 'gpt2'"),
        (lambda config: setattr(config, "attention_bias", True), "has attention_bias"),
        (lambda config: config.update({"model_type": "qwen3", "head_dim": 8}), "attention heads of 8 numbers"),
        (lambda config: config.rope_parameters.update(rope_type="yarn"), "in the way 'yarn'"),
    ],
)
def test_what_no_file_says_is_refused(change: Callable[[Any], None], said: str, tmp_path: Path) -> None:
    made = student(tmp_path)
    change(made.model.config)
    with pytest.raises(InputError, match=f"{said}.*--format merged"):
        check_gguf(made)


def test_an_encoder_is_refused_with_the_format_that_takes_it(tmp_path: Path) -> None:
    model = models.encoder_or_encoder_decoder("bert", layers=1)
    models.save(tmp_path / "bert", model, models.marked_tokenizer("bert"))
    made = cast(TorchStudent, load_student(tmp_path / "bert", write_task(tmp_path / "task.yaml")))
    with pytest.raises(InputError, match=r"an encoder with a classification head of the type 'bert'.*--format onnx"):
        check_gguf(made)


@pytest.mark.parametrize(
    "cutter", [pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(add_prefix_space=True), pre_tokenizers.Digits()]
)
def test_a_tokenizer_that_llama_cpp_has_no_name_for_is_refused(cutter: Any, tmp_path: Path) -> None:
    made = student(tmp_path)
    backend = models.train_tokenizer(["<pad>", "<eos>"])
    backend.pre_tokenizer = cutter
    made.tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>")
    with pytest.raises(InputError, match="cuts texts in a way"):
        check_gguf(made)


@pytest.mark.parametrize("digits", [False, True])
def test_llama_cpp_itself_reads_it_as_the_student(digits: bool, tmp_path: Path) -> None:
    llama_cpp = pytest.importorskip("llama_cpp", reason="of the extra `served`")
    made = student(tmp_path)
    if digits:  # as SmolLM2 has it
        backend = made.tokenizer.backend_tokenizer
        parts = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        backend.pre_tokenizer = pre_tokenizers.Sequence(parts)
    file = written(made, tmp_path / "out", "f32")
    server = llama_cpp.Llama(str(file), verbose=False, logits_all=True, n_threads=1, n_ctx=128)
    text = "Review: a good film, 1024 of 7  é\nSentiment: it's positive"
    ids = made.tokenizer(text)["input_ids"]
    assert server.tokenize(text.encode(), add_bos=False, special=False) == ids
    server.eval(ids)
    with torch.no_grad():
        expected = made.model(torch.tensor([ids])).logits[0]
    assert difference(expected, torch.tensor(np.array(server.scores[: len(ids)]))) < 2e-3
    server.close()
