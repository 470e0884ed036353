"""The JSON files of a model folder: the values that loading relies on are of the right type and of a possible size.

Transformers and PEFT end in whatever a wrong value leads to: an error of another file, or an attempt to make room for
10**12 rows. So the values that say how much is built are compared with the weights beside them, before anything is.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from sinkd_llm.errors import InputError

CONFIG = "config.json"

# What says how wide a model is. No stored weight is narrower by more than packing eight numbers into one makes it.
_WIDTHS = {
    *("vocab_size", "hidden_size", "intermediate_size", "moe_intermediate_size", "embedding_size"),
    *("n_embd", "n_inner", "d_model", "d_ff", "d_kv", "dim", "hidden_dim", "word_embed_proj_dim"),
    *("ffn_dim", "encoder_ffn_dim", "decoder_ffn_dim", "head_dim", "num_attention_heads", "num_key_value_heads"),
    *("n_head", "n_heads", "num_heads", "encoder_attention_heads", "decoder_attention_heads"),
}
_PACKED = 8
# What says how deep it is. The deepest published models have a few hundred layers.
_DEPTHS = {
    *("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_decoder_layers"),
    *("decoder_layers", "encoder_layers"),
}
_DEEPEST = 1000
_MOST_POSITIONS = 2**31
_MOST_LABELS = 10**5  # Transformers makes a dictionary of so many names
_MOST = {
    **dict.fromkeys(_DEPTHS, _DEEPEST),
    **dict.fromkeys(("max_position_embeddings", "n_positions"), _MOST_POSITIONS),
    "num_labels": _MOST_LABELS,
}

_TYPES: dict[str, tuple[type, ...]] = {
    "model_type": (str,),
    "architectures": (list,),
    "auto_map": (dict,),
    "quantization_config": (dict,),
    "text_config": (dict,),
    "id2label": (dict,),
    "label2id": (dict,),
    "problem_type": (str,),
    "layer_types": (list,),
    "rope_scaling": (dict,),
    "rope_parameters": (dict,),
    "tie_word_embeddings": (bool,),
    "is_encoder_decoder": (bool,),
    "is_decoder": (bool,),
    "use_cache": (bool,),
    "torch_dtype": (str,),
}
_TOKENIZER_TYPES: dict[str, tuple[type, ...]] = {
    "tokenizer_class": (str,),
    "chat_template": (str, list, dict),
    "added_tokens_decoder": (dict,),
    "auto_map": (dict, list),
    "model_max_length": (int, float),
    "padding_side": (str,),
    "truncation_side": (str,),
    **dict.fromkeys((f"{token}_token" for token in ("bos", "eos", "unk", "sep", "pad", "cls", "mask")), (str, dict)),
}
_ADAPTER_TYPES: dict[str, tuple[type, ...]] = {
    "peft_type": (str,),
    "task_type": (str,),
    "base_model_name_or_path": (str,),
    "revision": (str,),
    "target_modules": (str, list),
    "exclude_modules": (str, list),
    "modules_to_save": (list,),
    "rank_pattern": (dict,),
    "alpha_pattern": (dict,),
    "lora_alpha": (int, float),
    "lora_dropout": (int, float),
    "bias": (str,),
    "use_dora": (bool,),
    "use_rslora": (bool,),
    "inference_mode": (bool,),
    "fan_in_fan_out": (bool,),
}
# The probabilities of dropout, under all the names that models give them.
_DROPOUT = re.compile(r"(dropout(_?(prob|rate|p))?|pdrop|layerdrop|drop_?(path_?)?(prob|rate))$")
# What stands in a file that was not fetched: a pointer of Git LFS, or a web page that says why.
_POINTER = b"version https://git-lfs"
_PAGE = re.compile(rb"\s*<(!doctype|html|head|\?xml)", re.IGNORECASE)
_IN_WORDS = {
    str: "a text",
    list: "a list",
    dict: "an object",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
}


def not_fetched(file: Path) -> str | None:
    """What `file` holds instead of its content, and what to do, if a download put something else in its place."""
    try:
        with file.open("rb") as stream:
            start = stream.read(256)
    except OSError:
        return None
    if start.startswith(_POINTER):
        return (
            f"{file} is a pointer of Git LFS and not the file itself: the repository was cloned without Git LFS. "
            "Run `git lfs pull` there, or download the file."
        )
    if _PAGE.match(start):
        return (
            f"{file} is a web page: the download gave a page, such as a log-in or an error, in place of the file. "
            "Download it again."
        )
    return None


def read_json(file: Path, writer: str = "Transformers") -> dict[str, Any]:
    """The JSON object in `file`.

    Args:
        file (`Path`): what is read.
        writer (`str`, *optional*, defaults to `"Transformers"`): what writes such files, for the message.

    Raises:
        InputError: if the file is missing, cut short or holds something else.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{file.parent} has no {file.name}.") from None
    except (ValueError, OSError, RecursionError) as error:
        if said := not_fetched(file):
            raise InputError(said) from error
        raise InputError(
            f"{file} is not readable JSON ({error}): the folder is half written. Save the model again."
        ) from error
    if not isinstance(content, dict):
        raise InputError(
            f"{file} holds no JSON object but {_shown(content)}: it was not written by {writer}. Copy the file "
            "from the model's own folder again."
        )
    return content


def check_config(file: Path, largest: int) -> dict[str, Any]:
    """
    The content of a model's `config.json`, if it fits the weights beside it as far as names and sizes go.

    Args:
        file (`Path`): the `config.json`.
        largest (`int`): the largest dimension of any stored weight; 0 where that is not known.

    Raises:
        InputError: naming the file and the key.
    """
    config = read_json(file)
    if "model_type" not in config:
        raise InputError(f"{file} names no 'model_type': it is no Transformers model.")
    for path, part in _parts(config):
        _check_types(file, path, part, _TYPES)
        for key, value in part.items():
            if key in _WIDTHS or key in _MOST:
                _check_size(file, path + key, key, value, largest)
            elif key.endswith("_token_id"):
                _check_token(file, path + key, value)
        _check_dropout(file, path, part)
    names = config.get("architectures") or []
    if not all(isinstance(name, str) for name in names):
        raise InputError(_wrong(file, "architectures", names, "a list of class names"))
    if config["model_type"] is None:
        raise InputError(_wrong(file, "model_type", None, "a text"))
    return config


def check_tokens(file: Path) -> None:
    """
    Makes sure that what names tokens in a `generation_config.json` are numbers of tokens.

    Raises:
        InputError: naming the file and the key.
    """
    for key, value in read_json(file).items():
        if key.endswith("_token_id"):
            _check_token(file, key, value)


def check_packed(file: Path, config: Mapping[str, Any], names: Iterable[str]) -> None:
    """
    Refuses a `quantization_config` of bitsandbytes over weights that were saved in full precision.

    Transformers takes such weights for packed ones and loads them as they are, and the first forward ends in an error
    about a state that they lack.

    Args:
        file (`Path`): the `config.json`.
        config (`dict`): its content.
        names (`Iterable[str]`): of all stored weights.

    Raises:
        InputError: naming the file and the key.
    """
    for path, part in _parts(config):
        stored = part.get("quantization_config") or {}
        bits = 4 if stored.get("load_in_4bit") else 8 if stored.get("load_in_8bit") else None
        if bits is None or stored.get("quant_method", "bitsandbytes") != "bitsandbytes":
            continue
        mark = ".quant_state.bitsandbytes__" if bits == 4 else ".SCB"
        if not any(mark in name for name in names):
            raise InputError(
                f"{file}: {path}quantization_config says that the weights are packed in {bits} bits by bitsandbytes, "
                f"but those beside it are not packed. Take the key out and load the model with load_in_{bits}bit, or "
                "copy the file from the save that the weights are of."
            )


def check_adapter_config(file: Path, largest: int) -> dict[str, Any]:
    """
    The content of an `adapter_config.json`, if its ranks are none that the weights beside it cannot have.

    Args:
        file (`Path`): the `adapter_config.json`.
        largest (`int`): the largest dimension of any of the adapter's weights; 0 where that is not known.

    Raises:
        InputError: naming the file and the key.
    """
    from peft import PeftType

    config = read_json(file)
    _check_types(file, "", config, _ADAPTER_TYPES)
    _check_dropout(file, "", config)
    known = [str(kind.value) for kind in PeftType]
    if config.get("peft_type") not in known:
        raise InputError(_wrong(file, "peft_type", config.get("peft_type"), f"one of {', '.join(known)}"))
    ranks = {"r": config.get("r")}
    ranks |= {f"rank_pattern.{name}": rank for name, rank in (config.get("rank_pattern") or {}).items()}
    for key, value in ranks.items():
        # OFT has either a rank or a block size, and 0 for the other.
        if value is None or (value == 0 and config["peft_type"] == "OFT"):
            continue
        if not _is_whole(value) or value < 1:
            raise InputError(_wrong(file, key, value, "a whole number from 1"))
        if largest and value > largest:
            raise InputError(
                _wrong(file, key, value, f"at most {largest}, the largest dimension of the adapter's weights")
            )
    return config


def check_tokenizer_files(folder: Path) -> None:
    """
    Makes sure that a tokenizer's JSON files hold what they should, before a library reads them.

    Raises:
        InputError: naming the file and the key.
    """
    for name in ("special_tokens_map.json", "added_tokens.json"):
        if (folder / name).is_file():
            read_json(folder / name)
    file = folder / "tokenizer_config.json"
    if file.is_file():
        _check_types(file, "", read_json(file), _TOKENIZER_TYPES)


def weight_files(index: Path) -> list[str]:
    """
    The files that an index of weights names, each a path inside of its folder.

    Raises:
        InputError: naming the file and what is wrong in it.
    """
    mapping = read_json(index).get("weight_map")
    if not isinstance(mapping, dict) or not mapping or not all(isinstance(name, str) for name in mapping.values()):
        raise InputError(_wrong(index, "weight_map", mapping, "an object that names a file for each weight"))
    for name in mapping.values():
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise InputError(_wrong(index, "weight_map", name, "names of files inside of the folder"))
    return sorted(set(mapping.values()))


def _parts(config: Mapping[str, Any], path: str = "", deep: int = 0) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The configuration and those inside of it (`text_config`, `encoder`, `decoder`), each with its path."""
    yield path, config
    for key, value in config.items():
        if isinstance(value, dict) and deep < 3 and (key.endswith("_config") or key in ("encoder", "decoder")):
            yield from _parts(value, f"{path}{key}.", deep + 1)


def _check_types(file: Path, path: str, content: Mapping[str, Any], types: Mapping[str, tuple[type, ...]]) -> None:
    for key, allowed in types.items():
        value = content.get(key)
        if value is None:
            continue
        if not isinstance(value, allowed) or (isinstance(value, bool) and bool not in allowed):
            raise InputError(_wrong(file, path + key, value, " or ".join(_IN_WORDS[kind] for kind in allowed)))


def _check_size(file: Path, path: str, key: str, value: Any, largest: int) -> None:
    if value is None:
        return
    if isinstance(value, list) and all(_is_whole(number) and number >= 0 for number in value):
        value = max(value, default=1)  # one a layer; a layer without experts or heads has 0
    elif not _is_whole(value) or value < (0 if key == "encoder_layers" else 1):
        raise InputError(_wrong(file, path, value, "a whole number from 1"))
    if key in _WIDTHS:
        most = largest * _PACKED
        if largest and value > most:
            raise InputError(
                _wrong(file, path, value, f"of the size of its weights, whose largest dimension is {largest}")
            )
    elif value > _MOST[key]:
        raise InputError(_wrong(file, path, value, f"at most {_MOST[key]}"))


def _check_dropout(file: Path, path: str, content: Mapping[str, Any]) -> None:
    for key, value in content.items():
        if value is None or isinstance(value, bool) or not _DROPOUT.search(key):
            continue
        for number in value if isinstance(value, list) else [value]:
            if not isinstance(number, int | float) or not 0 <= number <= 1:
                raise InputError(_wrong(file, path + key, value, "a probability from 0 to 1"))


def _check_token(file: Path, path: str, value: Any) -> None:
    tokens = value if isinstance(value, list) else [value]
    if value is not None and not all(_is_whole(token) and abs(token) < 2**31 for token in tokens):
        raise InputError(_wrong(file, path, value, "a token's number or a list of such"))


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _wrong(file: Path, key: str, value: Any, wanted: str) -> str:
    return (
        f"{file}: {key} is {_shown(value)}, but must be {wanted}. Correct it, or copy the file from the save that "
        "its weights are of."
    )


def _shown(value: Any) -> str:
    try:
        text = json.dumps(value, ensure_ascii=False)
    except ValueError:  # a number of thousands of digits
        text = type(value).__name__
    return text if len(text) <= 80 else text[:80] + " …"
