"""Task files: YAML in lm-evaluation-harness's schema, read, merged with what they include, and checked.

The same file is meant to run in lm-evaluation-harness, so every key here is one of its keys, and what
only this project reads stands under `metadata`, which it leaves free.
"""

from pathlib import Path
from typing import Any

import yaml

from sinkd_llm.errors import InputError, nearest

REQUIRED = ("task", "dataset_path", "output_type", "doc_to_text", "doc_to_choice", "doc_to_target")
# What each key may hold.
SUPPORTED: dict[str, tuple[type, ...]] = {
    "task": (str,),
    "task_alias": (str,),
    "tag": (str, list),
    "include": (str, list),
    "dataset_path": (str,),
    "dataset_name": (str,),
    "dataset_kwargs": (dict,),
    "training_split": (str,),
    "validation_split": (str,),
    "test_split": (str,),
    "output_type": (str,),
    "description": (str,),
    "doc_to_text": (str,),
    "doc_to_choice": (str, list, dict),
    "doc_to_target": (str, int),
    "target_delimiter": (str,),
    "gen_prefix": (str,),
    "metric_list": (list,),
    "metadata": (dict,),
}
# Read by lm-evaluation-harness, without effect on a zero-shot prompt, its choices or its gold answer.
WITHOUT_EFFECT = (
    "fewshot_split",
    "fewshot_delimiter",
    "fewshot_config",
    "should_decontaminate",
    "doc_to_decontamination_query",
    "generation_kwargs",
    "repeats",
)
_CODE = "it runs Python code, and a task file is data only; write what it does as a template"
REFUSED = {
    "process_docs": _CODE,
    "process_results": _CODE,
    "custom_dataset": _CODE,
    "class": _CODE,
    "unsafe_code": _CODE,
    "use_prompt": "prompts come from the file itself; copy the prompt into doc_to_text",
    "doc_to_image": "only text tasks are supported",
    "doc_to_audio": "only text tasks are supported",
    "filter_list": "filters belong to generated text, and answers are ranked here",
    "group": "a file holds one task; give the tasks of the group one by one",
    "task_list": "a file holds one task; write each variant as a file that includes the main one",
}
KNOWN = (*SUPPORTED, *WITHOUT_EFFECT, *REFUSED, "num_fewshot")
METADATA: dict[str, tuple[type, ...]] = {"description": (str,), "metrics": (list,), "local": (dict,)}
FORMATS = ("tsv", "csv", "jsonl")
METADATA_LOCAL: dict[str, tuple[type, ...]] = {
    "folder": (str,),
    "format": (str,),
    "files": (dict,),
    "column_names": (list,),
    "columns": (dict,),
    "labels": (dict,),
}


class _Loader(yaml.SafeLoader):
    """A safe loader that says why `!function` is refused."""


def _refuse_function(loader: yaml.SafeLoader, node: yaml.Node) -> None:
    raise InputError(f"Line {node.start_mark.line + 1} of {node.start_mark.name} uses !function, but {_CODE}.")


_Loader.add_constructor("!function", _refuse_function)


def read_task_file(path: Path) -> tuple[dict[str, Any], dict[str, Path]]:
    """
    The checked keys of a task file, merged over those of the files that it includes.

    As in lm-evaluation-harness, an `include` is relative to the file that names it, later includes win
    over earlier ones, a key in the file wins over all of them, and values are replaced, not merged.

    Args:
        path (`Path`): the YAML file.

    Returns:
        `tuple[dict, dict]`: key to value, and key to the file that the value comes from.

    Raises:
        InputError: if a file is missing, no YAML, or includes itself; for a key that is unknown, refused,
            missing or of the wrong type.
    """
    merged, origins = _merge(path.resolve(), set())
    # A null in the file takes back what an include set.
    config = {key: value for key, value in merged.items() if value is not None}
    for key in REQUIRED:
        if config.get(key) is None:
            hint = "; it should be multiple_choice" if key == "output_type" else ""
            raise InputError(f"The task file {path} lacks the key {key}{hint}.")
    if config["output_type"] != "multiple_choice":
        raise InputError(
            f"{origins['output_type']} has output_type {config['output_type']!r}, but only tasks with answer "
            "choices (multiple_choice) are supported yet, no generation."
        )
    _check_metadata(config, origins)
    return config, origins


def _merge(path: Path, seen: set[Path]) -> tuple[dict[str, Any], dict[str, Path]]:
    if path in seen:  # lm-evaluation-harness refuses a second inclusion too
        raise InputError(f"The task file {path} is included twice or includes itself; drop one include.")
    seen.add(path)
    own = _read_yaml(path)
    includes = own.pop("include", None) or []
    config: dict[str, Any] = {}
    origins: dict[str, Path] = {}
    for include in [includes] if isinstance(includes, str) else includes:
        included = (path.parent / str(include)).resolve()
        if not included.is_file():
            raise InputError(f"{path} includes {include!r}, but there is no file {included}.")
        values, places = _merge(included, seen)
        config |= values
        origins |= places
    return config | own, origins | dict.fromkeys(own, path)


def _read_yaml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise InputError(f"There is no task file {path}; check the path.")
    try:
        with path.open(encoding="utf-8") as file:
            config = yaml.load(file, Loader=_Loader)
    except UnicodeDecodeError as error:
        raise InputError(f"The task file {path} is not UTF-8 text; save it as UTF-8.") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" at line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or error
        raise InputError(f"The task file {path} is not valid YAML{line}: {problem}.") from error
    if not isinstance(config, dict):
        raise InputError(
            f"The task file {path} should hold keys such as task and doc_to_text, but it "
            f"{'is empty' if config is None else f'holds a {type(config).__name__}'}."
        )
    for key, value in config.items():
        _check_key(key, value, path)
    return config


def _check_key(key: Any, value: Any, path: Path) -> None:
    if key not in KNOWN:
        raise InputError(f"Unknown key {key!r} in {path}.{nearest(str(key), KNOWN)}{_OWN_KEYS}")
    if value is None:
        return
    if key in REFUSED and value is not False:
        raise InputError(f"The key {key} in {path} is refused: {REFUSED[key]}.")
    if key == "num_fewshot" and value != 0:
        raise InputError(
            f"num_fewshot is {value!r} in {path}, but prompts here have no examples in them; set it to 0."
        )
    if key in SUPPORTED:
        _check_type(key, value, SUPPORTED[key], path)


_OWN_KEYS = " Keys that lm-evaluation-harness does not know belong under metadata."


def _check_type(key: str, value: Any, types: tuple[type, ...], path: Path) -> None:
    # bool is an int to isinstance, but `doc_to_target: yes` is a mistake.
    if not isinstance(value, types) or isinstance(value, bool):
        words = {str: "text", int: "a whole number", list: "a list", dict: "a mapping"}
        wanted = " or ".join(words[kind] for kind in types)
        raise InputError(f"{key} in {path} should be {wanted}, but it is {value!r} ({type(value).__name__}).")


def _check_metadata(config: dict[str, Any], origins: dict[str, Path]) -> None:
    """Checks the keys under `metadata` that this project reads; others are free."""
    metadata = config.get("metadata", {})
    for key in METADATA.keys() & metadata.keys():
        _check_type(f"metadata.{key}", metadata[key], METADATA[key], origins["metadata"])
    if "local" in metadata:
        _check_local(metadata["local"], origins["metadata"])


def _check_local(local: dict[str, Any], path: Path) -> None:
    known = list(METADATA_LOCAL)
    for key, value in local.items():
        if key not in known:
            raise InputError(
                f"Unknown key {key!r} under metadata.local in {path}.{nearest(str(key), known)} Known keys: "
                f"{', '.join(known)}."
            )
        _check_type(f"metadata.local.{key}", value, METADATA_LOCAL[key], path)
    missing = [key for key in ("folder", "format", "files") if key not in local]
    if missing:
        raise InputError(f"metadata.local in {path} lacks the key {missing[0]}.")
    if local["format"] not in FORMATS:
        raise InputError(
            f"metadata.local.format in {path} is {local['format']!r}; known formats: {', '.join(FORMATS)}."
        )
    for split, name in local["files"].items():
        _check_type(f"metadata.local.files.{split}", name, (str,), path)
    for column, source in local.get("columns", {}).items():
        _check_type(f"metadata.local.columns.{column}", source, (str, list), path)
