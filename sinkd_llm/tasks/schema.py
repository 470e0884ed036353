"""Task files: YAML in lm-evaluation-harness's schema, read, merged with what they include, and checked.

The same file is meant to run in lm-evaluation-harness, so every key here is one of its keys, and what
only this project reads stands under `metadata`, which it leaves free.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sinkd_llm.errors import InputError, nearest
from sinkd_llm.metrics import CHOICE_METRICS, TEXT_METRICS, check_metric_names
from sinkd_llm.tasks.labels import READINGS
from sinkd_llm.yaml_files import read_yaml_mapping

# Accuracy under another ranking of the choices: evaluation reports every ranking by itself.
_RANKINGS = ("acc_norm", "acc_bytes")
REQUIRED = ("task", "dataset_path", "output_type", "doc_to_text", "doc_to_target")
OUTPUT_TYPES = ("multiple_choice", "generate_until")
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
    "generation_kwargs": (dict,),
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
    "filter_list": "generated text is scored as it comes, and ranked answers need no filter",
    "group": "a file holds one task; give the tasks of the group one by one",
    "task_list": "a file holds one task; write each variant as a file that includes the main one",
}
KNOWN = (*SUPPORTED, *WITHOUT_EFFECT, *REFUSED, "num_fewshot")
METADATA: dict[str, tuple[type, ...]] = {
    "description": (str,),
    "metrics": (list,),
    "scoring": (dict,),
    "texts": (list,),
    "labels_are": (str,),
    "group": (str,),
    "local": (dict,),
}
# What a metric needs beside the choices and the gold one; each a column or a template.
METADATA_SCORING: dict[str, tuple[type, ...]] = {"group": (str,), "answers": (str,), "target": (str,)}
FORMATS = ("tsv", "csv", "jsonl", "trec", "clinc", "multirc", "record")
METADATA_LOCAL: dict[str, tuple[type, ...]] = {
    "folder": (str, list),
    "format": (str,),
    "files": (dict,),
    "members": (dict,),
    "column_names": (list,),
    "columns": (dict,),
    "labels": (dict,),
    "label_column": (str,),
    "incomplete_rows": (str,),
}


def read_task_file(path: Path) -> tuple[dict[str, Any], dict[str, Path]]:
    """
    The checked keys of a task file, merged over the keys of the files that it includes.

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
    return _whole(*_merge(path.resolve(), set()), path)


def checked_keys(keys: Mapping[str, Any], path: Path) -> tuple[dict[str, Any], dict[str, Path]]:
    """
    As [`read_task_file`], of keys that were merged before and are kept in another file than a task file.

    Args:
        keys (`Mapping[str, Any]`): key to value.
        path (`Path`): where they are kept, for messages.
    """
    for key, value in keys.items():
        _check_key(key, value, path)
    return _whole(dict(keys), dict.fromkeys(keys, path), path)


def _whole(merged: dict[str, Any], origins: dict[str, Path], path: Path) -> tuple[dict[str, Any], dict[str, Path]]:
    """The keys, if all of them together are a task."""
    # A null in the file takes back what an include set.
    config = {key: value for key, value in merged.items() if value is not None}
    for key in REQUIRED:
        if config.get(key) is None:
            hint = f"; it should be {' or '.join(OUTPUT_TYPES)}" if key == "output_type" else ""
            raise InputError(f"The task file {path} lacks the key {key}{hint}.")
    _check_output_type(config, origins)
    _check_metadata(config, origins)
    return config, origins


def _merge(path: Path, seen: set[Path]) -> tuple[dict[str, Any], dict[str, Path]]:
    if path in seen:  # lm-evaluation-harness refuses a second inclusion too
        raise InputError(f"The task file {path} is included twice or includes itself; drop one include.")
    seen.add(path)
    own = _read_keys(path)
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


def _read_keys(path: Path) -> dict[str, Any]:
    config = read_yaml_mapping(path, "task file", {"!function": _CODE})
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


def _check_output_type(config: dict[str, Any], origins: dict[str, Path]) -> None:
    kind, path = config["output_type"], origins["output_type"]
    if kind not in OUTPUT_TYPES:
        raise InputError(
            f"{path} has output_type {kind!r}, but a task here ranks answers (multiple_choice) or generates them "
            "(generate_until)."
        )
    if kind == "multiple_choice" and "doc_to_choice" not in config:
        raise InputError(
            f"The task file {path} lacks the key doc_to_choice; without answer choices, output_type is generate_until."
        )
    choice_only = "doc_to_choice" if "doc_to_choice" in config else "metadata.scoring"
    if kind == "generate_until" and ("doc_to_choice" in config or "scoring" in config.get("metadata", {})):
        raise InputError(f"{path} generates its answers (generate_until), so {choice_only} has no use; drop it.")


def _check_metadata(config: dict[str, Any], origins: dict[str, Path]) -> None:
    """Checks the keys under `metadata` that this project reads; others are free."""
    metadata = config.get("metadata", {})
    for key in METADATA.keys() & metadata.keys():
        _check_type(f"metadata.{key}", metadata[key], METADATA[key], origins["metadata"])
    texts = metadata.get("texts", [""])
    if len(texts) not in (1, 2) or not all(isinstance(text, str) for text in texts):
        raise InputError(
            f"metadata.texts in {origins['metadata']} is {texts!r}; it names one or two columns or templates, the "
            "texts that an encoder with a classification head reads."
        )
    if metadata.get("labels_are", "words") not in READINGS:
        raise InputError(
            f"metadata.labels_are in {origins['metadata']} is {metadata['labels_are']!r}; it says what labels that "
            f"are numbers stand for, {' or '.join(READINGS)}."
        )
    if "scoring" in metadata:
        _check_keys("metadata.scoring", metadata["scoring"], METADATA_SCORING, origins["metadata"])
    if "local" in metadata:
        _check_local(metadata["local"], origins["metadata"])


def _check_local(local: dict[str, Any], path: Path) -> None:
    _check_keys("metadata.local", local, METADATA_LOCAL, path)
    missing = [key for key in ("folder", "format", "files") if key not in local]
    if missing:
        raise InputError(f"metadata.local in {path} lacks the key {missing[0]}.")
    if local["format"] not in FORMATS:
        raise InputError(
            f"metadata.local.format in {path} is {local['format']!r}; known formats: {', '.join(FORMATS)}."
        )
    for split, names in local["files"].items():
        _check_names(f"metadata.local.files.{split}", names, path)
    _check_names("metadata.local.folder", local["folder"], path)
    # What each reader takes.
    for key, formats in (("column_names", ("tsv", "csv")), ("incomplete_rows", ("tsv",)), ("members", ("clinc",))):
        if key in local and local["format"] not in formats:
            raise InputError(
                f"metadata.local.{key} in {path} is for files of the format {' or '.join(formats)}, not "
                f"{local['format']}; drop it."
            )
    if local["format"] == "clinc":
        _check_members(local, path)
    if "column_names" in local:
        _check_names("metadata.local.column_names", local["column_names"], path)
        if len(set(local["column_names"])) < len(local["column_names"]):
            raise InputError(f"metadata.local.column_names in {path} has a name twice; give each column its own.")
    _check_label_indices(local.get("labels", {}), path)
    if local.get("incomplete_rows", "skip") != "skip":
        raise InputError(f"metadata.local.incomplete_rows in {path} is {local['incomplete_rows']!r}; it can be skip.")
    for column, source in local.get("columns", {}).items():
        _check_names(f"metadata.local.columns.{column}", source, path)


def _check_members(local: dict[str, Any], path: Path) -> None:
    """Which split of the file each split of the task is."""
    members = local.get("members", {})
    for split in local["files"]:
        if not isinstance(members.get(split), str):
            raise InputError(
                f"metadata.local.members.{split} in {path} is {members.get(split)!r}; a file of the format clinc has "
                "several splits, so it says the name of this one there."
            )


def _check_names(place: str, names: Any, path: Path) -> None:
    """A name, or a list of at least one."""
    _check_type(place, names, (str, list), path)
    if not names or not all(isinstance(name, str) and name for name in names):
        raise InputError(f"{place} in {path} is {names!r}; give a name, or a list of names.")


def _check_label_indices(labels: dict[Any, Any], path: Path) -> None:
    seen: set[str] = set()
    for written, index in labels.items():
        if not isinstance(index, int) or isinstance(index, bool) or index < -1:
            raise InputError(
                f"metadata.local.labels.{written} in {path} is {index!r}; it is the index of a choice, from 0, or -1."
            )
        text = as_written(written)
        if text in seen:
            raise InputError(
                f"metadata.local.labels in {path} gives {text!r} twice, as text and as a value; keep one."
            )
        seen.add(text)


def as_written(value: Any) -> str:
    """How a label is written: YAML and JSON read `true` as a boolean and `1` as a number, TSV reads text."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _check_keys(place: str, values: dict[str, Any], known: dict[str, tuple[type, ...]], path: Path) -> None:
    for key, value in values.items():
        if key not in known:
            raise InputError(
                f"Unknown key {key!r} under {place} in {path}.{nearest(str(key), list(known))} Known keys: "
                f"{', '.join(known)}."
            )
        _check_type(f"{place}.{key}", value, known[key], path)


def metrics_asked_for(config: Mapping[str, Any], origins: Mapping[str, Path], path: Path) -> tuple[str, ...]:
    """
    The names of a task's metrics; `("acc",)` or, of written answers, `("rouge_l",)` where it names none.

    Args:
        config, origins: of [`read_task_file`].
        path (`Path`): the task file, for messages.

    Raises:
        InputError: for an entry that is none, and for an unknown metric.
    """
    names = []
    for entry in config.get("metric_list", []):
        if not isinstance(entry, dict) or not isinstance(entry.get("metric"), str):
            raise InputError(
                f"metric_list in {origins['metric_list']} holds {entry!r}; an entry looks like metric: acc."
            )
        names.append("acc" if entry["metric"] in _RANKINGS else entry["metric"])
    # Metrics that lm-evaluation-harness has no name for, such as f1_macro.
    names += map(str, config.get("metadata", {}).get("metrics", []))
    ranked = config["output_type"] == "multiple_choice"
    try:
        check_metric_names(names, CHOICE_METRICS if ranked else TEXT_METRICS)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    return tuple(dict.fromkeys(names)) or (("acc",) if ranked else ("rouge_l",))
