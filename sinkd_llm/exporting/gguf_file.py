"""
A decoder as a GGUF file, for llama.cpp, by the writers of the `gguf` package.

Written are the architectures whose file Transformers reads back, so that it can be compared with the student, and the
tokenizers whose cutting of texts llama.cpp has under a name.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sinkd_llm.errors import InputError, shown
from sinkd_llm.inputs.special_tokens import bos_ids
from sinkd_llm.models.kinds import kind_of
from sinkd_llm.models.quantisation import quantisation_of
from sinkd_llm.models.wrappers import unwrap

if TYPE_CHECKING:
    from gguf import GGUFWriter

    from sinkd_llm.answering.torch_student import TorchStudent

GGUF_FILE = "model.gguf"
# Transformers' name of an architecture -> GGUF's. In those of `_INTERLEAVED` the pairs of numbers that rotary
# positions turn are neighbours; Transformers has them half a head apart.
ARCHITECTURES = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
_INTERLEAVED = ("llama",)
# Transformers does not look at what a file says of it.
_HEAD_OF_QWEN3 = 128
# Types of numbers: GGUF's name of the type, and of a file of it.
TYPES = {"f32": ("F32", "ALL_F32"), "f16": ("F16", "MOSTLY_F16"), "q8_0": ("Q8_0", "MOSTLY_Q8_0")}

_WORDS = r"|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SUFFIXES = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
# How a tokenizer cuts texts before it merges, as `_cut` writes it -> llama.cpp's name of that.
_CUTS = {
    ("ByteLevel",): "gpt-2",
    ("Digits", "ByteLevel"): "smollm",
    (_SUFFIXES + _WORDS % r"\p{N}", "bytes"): "qwen2",
    (_SUFFIXES + _WORDS % r"\p{N}{1,3}", "bytes"): "llama-bpe",
}

# Texts that ways of cutting tell apart: digits, spaces, apostrophes, other scripts.
_PROBES = (
    "it's 1024 of 3.14159 %",
    "  two spaces,\ta tab\n\nand lines ",
    "¿Él: «naïve café»? — 東京は晴れ 🙂",
    "WE'LL x_1!=0",
)


def check_gguf(student: "TorchStudent") -> None:
    """
    Refuses a student that no GGUF file is written of.

    Raises:
        InputError: naming what it is about the student.
    """
    model, tokenizer = unwrap(student.model), student.tokenizer
    config, kind = model.config, kind_of(model)
    if config.model_type not in ARCHITECTURES:
        raise InputError(
            f"The student is {kind.title} of the type {shown(config.model_type)}, and GGUF files are written of "
            f"{', '.join(ARCHITECTURES)}: of others none could be read back and compared with the student. Give "
            f"--format {'merged' if kind.writes_text else 'onnx'}."
        )
    if not kind.writes_text:
        raise InputError(f"The student is {kind.title}, and llama.cpp runs this type as a language model only.")
    if method := quantisation_of(model):
        raise InputError(f"The weights of the student are packed ({method}); load it unpacked to export it.")
    scaling = _rope(config).get("rope_type", "default")
    if scaling != "default":
        raise InputError(
            f"The student scales its positions in the way {shown(scaling)} (rope_parameters in its config.json), "
            "which the GGUF writer here does not know; give --format merged."
        )
    for name in ("attention_bias", "mlp_bias"):
        if getattr(config, name, False):
            raise InputError(
                f"The student has {name}, which the GGUF writer here does not know; give --format merged."
            )
    if config.model_type == "qwen3" and config.head_dim != _HEAD_OF_QWEN3:
        raise InputError(
            f"The student has attention heads of {config.head_dim} numbers, and Transformers reads GGUF files of "
            f"Qwen3 back with {_HEAD_OF_QWEN3} alone; give --format merged."
        )
    if getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", False):
        raise InputError("The student looks at a sliding window, which no GGUF file here says; give --format merged.")
    _vocabulary(tokenizer)
    _cut(tokenizer)


def write_gguf(student: "TorchStudent", folder: Path, numbers: str = "f16") -> None:
    """
    Writes a student as `model.gguf`.

    Args:
        student ([`TorchStudent`]): which [`check_gguf`] has passed.
        folder (`Path`): exists.
        numbers (`str`, *optional*, defaults to `"f16"`): the type of its matrices: `"f32"`, `"f16"`, `"q8_0"` (eight
            bits, a scale for each 32 numbers). Vectors are fp32 in all.
    """
    import gguf

    model, tokenizer = unwrap(student.model), student.tokenizer
    config = model.config
    architecture = ARCHITECTURES[config.model_type]
    writer = gguf.GGUFWriter(folder / GGUF_FILE, architecture)
    try:
        _write_config(writer, config, model)
        writer.add_file_type(gguf.LlamaFileType[TYPES[numbers][1]])
        _write_tokenizer(writer, tokenizer, model.get_input_embeddings().weight.shape[0])
        names = gguf.get_tensor_name_map(
            next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture), config.num_hidden_layers
        )
        for name, weight in _weights(model):
            stem, _, ending = name.rpartition(".")
            theirs = names.get_name(stem)
            if theirs is None:
                raise InputError(
                    f"The gguf package has no name for the student's weight {name}; give --format merged."
                )
            data, kind = _converted(weight, numbers)
            writer.add_tensor(f"{theirs}.{ending}", data, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def check_read_back(tokenizer: Any, found: Any) -> None:
    """
    Makes sure that the tokenizer of a file is the student's; it may have tokens for the rows beyond the vocabulary.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): the student's.
        found (`PreTrainedTokenizerBase`): of the file.

    Raises:
        InputError: with the first difference.
    """
    theirs = found.get_vocab()
    for token, index in tokenizer.get_vocab().items():
        if theirs.get(token) != index:
            raise InputError(
                f"The token {shown(token)} has the number {index} in the student's tokenizer and {theirs.get(token)} "
                "in the GGUF file; give --format merged."
            )
    for text in _PROBES:
        ids, others = (one(text, add_special_tokens=False)["input_ids"] for one in (tokenizer, found))
        if ids != others:
            raise InputError(
                f"The student reads {shown(text)} as the tokens {ids}, and the GGUF file as {others}: its tokenizer "
                "cuts texts in another way. Give --format merged."
            )


def _rope(config: Any) -> Mapping[str, Any]:
    return getattr(config, "rope_parameters", None) or {}


def _write_config(writer: "GGUFWriter", config: Any, model: Any) -> None:
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_rope_dimension_count(head)
    writer.add_rope_freq_base(float(_rope(config).get("rope_theta", 10_000.0)))
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(model.get_input_embeddings().weight.shape[0])


def _write_tokenizer(writer: "GGUFWriter", tokenizer: Any, rows: int) -> None:
    from gguf import TokenType

    vocabulary, merges = _vocabulary(tokenizer)
    by_id = {index: token for token, index in vocabulary.items()}
    added = tokenizer.added_tokens_decoder
    tokens, types = [], []
    for index in range(rows):
        kind = TokenType.NORMAL
        if index in added:
            kind = TokenType.CONTROL if added[index].special else TokenType.USER_DEFINED
        elif index not in by_id:  # the matrix of embeddings is larger than the vocabulary
            kind = TokenType.UNUSED
        tokens.append(by_id.get(index, f"[unused{index}]"))
        types.append(kind)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(_cut(tokenizer))
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(merges)
    given: list[tuple[int | None, Callable[[int], None]]] = [
        (tokenizer.bos_token_id, writer.add_bos_token_id),
        (tokenizer.eos_token_id, writer.add_eos_token_id),
        (tokenizer.pad_token_id, writer.add_pad_token_id),
        (tokenizer.unk_token_id, writer.add_unk_token_id),
    ]
    for number, add in given:
        if number is not None:
            add(number)
    writer.add_add_bos_token(bool(bos_ids(tokenizer)))
    writer.add_add_eos_token(False)
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)


def _backend(tokenizer: Any) -> dict[str, Any]:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    content: dict[str, Any] = json.loads(backend.to_str()) if backend is not None else {}
    return content


def _vocabulary(tokenizer: Any) -> tuple[dict[str, int], list[str]]:
    """The tokens with their numbers, and the merges, of a byte-level BPE tokenizer."""
    model = _backend(tokenizer).get("model", {})
    if model.get("type") != "BPE" or model.get("byte_fallback"):
        raise InputError(
            f"The tokenizer of this student ({type(tokenizer).__name__}) is no byte-level BPE, the only one that the "
            "GGUF writer here knows; give --format merged."
        )
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    return tokenizer.get_vocab(), merges


def _cut(tokenizer: Any) -> str:
    """llama.cpp's name for how a tokenizer cuts a text into the pieces that it merges within."""
    content = _backend(tokenizer)
    cutter = content.get("pre_tokenizer") or {}
    parts = cutter["pretokenizers"] if cutter.get("type") == "Sequence" else [cutter]
    found = tuple(map(_part, parts))
    # NFC changes what Qwen reads of a few texts only, and llama.cpp leaves it out for all its vocabularies.
    plain = (content.get("normalizer") or {"type": "NFC"})["type"] == "NFC"
    if not plain or found not in _CUTS:
        raise InputError(
            f"The tokenizer of this student cuts texts in a way that llama.cpp has no name for here "
            f"({', '.join(str(part.get('type')) for part in parts)}); give --format merged."
        )
    return _CUTS[found]


def _part(part: Mapping[str, Any]) -> str:
    kind = part.get("type")
    if kind == "ByteLevel" and not part["add_prefix_space"]:
        return "ByteLevel" if part["use_regex"] else "bytes"
    if kind == "Digits" and part["individual_digits"]:
        return "Digits"
    if kind == "Split" and part["behavior"] == "Isolated" and not part["invert"]:
        return str(part["pattern"].get("Regex"))
    return f"another {kind}"


def _weights(model: Any) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Each weight under Transformers' name, as GGUF has it; one that two parts share once, under the first name."""
    config = model.config
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, weight in model.named_parameters():
        found: NDArray[np.float32] = weight.detach().float().cpu().numpy()
        which = re.search(r"\.([qk]_proj)\.weight$", name)
        if which and config.model_type in _INTERLEAVED:
            halves = found.reshape(heads[which[1]], 2, -1, found.shape[1])
            found = np.ascontiguousarray(halves.swapaxes(1, 2).reshape(found.shape))
        yield name, found


def _converted(weight: NDArray[np.float32], numbers: str) -> tuple[NDArray[Any], Any]:
    from gguf import GGMLQuantizationType
    from gguf.quants import QuantError, quantize

    if weight.ndim < 2:
        return weight, GGMLQuantizationType.F32
    kind = GGMLQuantizationType[TYPES[numbers][0]]
    try:
        return quantize(weight, kind), kind
    except QuantError:  # rows that are no multiple of 32 numbers
        return quantize(weight, GGMLQuantizationType.F16), GGMLQuantizationType.F16
