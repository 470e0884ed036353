"""Saving a student so that its folder loads by itself.

A full model is saved as Transformers saves it. A LoRA student is saved as PEFT saves it when its base
can be had by name again (a hub id, a folder that holds the whole base). When it cannot (the base was
cut from a teacher, merged, read from a GGUF file, built or changed in memory), the base is saved, too:

    student/
      adapter_config.json  adapter_model.safetensors     the adapter
      config.json  model.safetensors.index.json          the base, as an index into base/
      tokenizer.json …
      base/  config.json  model.safetensors              the base, stored once

Transformers takes a folder with `config.json` and `adapter_config.json` for a complete model with an
adapter and loads both; PEFT is given `base/` and the folder. Both read the same weight file, all paths
are relative, and nothing is applied twice. An adapter that Transformers cannot load so (DoRA, VeRA) is folded
into its base and saved as a full model.

A save is whole or leaves the folder as it was (`placing.py`), and what it would load as is compared with the student
in memory before it counts.
"""

import json
import logging
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers.tokenization_utils_base import VERY_LARGE_INTEGER

from sinkd_llm.errors import InputError
from sinkd_llm.models.adapter_facts import base_source, base_weights, loads_merged_only, settle_base
from sinkd_llm.models.finite import check_finite_weights
from sinkd_llm.models.kinds import context_length, kind_of
from sinkd_llm.models.names import (
    ADAPTER_CONFIG,
    BASE_FOLDER,
    BASE_REFERENCE,
    WEIGHTS,
    WEIGHTS_INDEX,
    ModelSource,
)
from sinkd_llm.models.origin import noted_layers
from sinkd_llm.models.placing import README, check_place, staged, write_record
from sinkd_llm.models.quantisation import quantisation_of, saving_given_weights
from sinkd_llm.models.reloading import can_compare, load_again, what_differs
from sinkd_llm.models.wrappers import check_is_model, unwrap
from sinkd_llm.quiet import quiet_transformers

logger = logging.getLogger(__name__)


def save_student(
    model: Any,
    tokenizer: Any,
    output_dir: str | Path,
    *,
    state_dict: dict[str, Tensor] | None = None,
    check: bool = True,
) -> None:
    """
    Writes a student and its tokenizer to a folder that plain Transformers and PEFT code loads.

    `AutoModelForCausalLM.from_pretrained(folder)` and `AutoTokenizer.from_pretrained(folder)` work from
    any working directory, and after the folder was moved. What an earlier student left in the folder
    is removed, what anybody else put there is not. Weights are safetensors; tied ones are stored once.

    Args:
        model (`PreTrainedModel` or `PeftModel`): the student.
        tokenizer (`PreTrainedTokenizerBase`): its tokenizer.
        output_dir (`str` or `Path`): made if it does not exist.
        state_dict (`dict`, *optional*): the gathered weights, where the model itself holds only a part
            of them (DeepSpeed stage 3, FSDP). What was written is compared with them, then.
        check (`bool`, *optional*, defaults to `True`): load what was written and compare its outputs for a few rows
            with the logits of `model`. It takes the memory of a second student; where that is not free a warning is
            logged instead.

    Raises:
        InputError: if `model` is none, `output_dir` is a file or holds a model of another origin, a weight is not
            finite, the model cannot be saved, or what was written does not compute what `model` does. `output_dir` is
            as before then, and what differs lies beside it.
    """
    from peft import PeftModel

    check_is_model(model)
    folder = Path(output_dir)
    check_place(folder)
    _check_method_and_settings(model)
    if state_dict is None:
        check_finite_weights(model, "the student")
    with staged(folder) as staging, quiet_transformers():
        source = base_source(model) if isinstance(model, PeftModel) else None
        if source is not None and source.kind == "folder" and Path(source.path).is_relative_to(folder.resolve()):
            if state_dict is not None:
                raise InputError(f"Cannot save to {folder}: it holds the adapter's base model. Give another folder.")
            source = None  # that base makes room for this save
        merged_in = _write(model, staging, state_dict, source)
        if check and can_compare(model):
            found = what_differs(model, staging, source, state_dict)
            if found and source is not None and state_dict is None:
                # The name gives another base, in a way that its files do not show.
                _empty(staging)
                merged_in = _write(model, staging, None, None)
                found = what_differs(model, staging, None)
            if found:
                raise InputError(f"{found} {_kept(staging, folder)}")
        _save_tokenizer(tokenizer, model, staging)
        layers = noted_layers(unwrap(model))
        facts = {"base_quantisation": quantisation_of(model), "merged_in": merged_in}
        write_record(staging, facts if layers is None else {**facts, "layers": layers.as_dict()})


def _save_tokenizer(tokenizer: Any, model: Any, folder: Path) -> None:
    """
    Saves the tokenizer with the padding that the model needs where plain code batches its rows, and with the model's
    context where it has no length of its own: plain code truncates to that.

    A decoder is padded on the left, every other kind on the right: see [`~sinkd_llm.models.kinds.choose.pads_left`].
    """
    side, length = tokenizer.padding_side, tokenizer.model_max_length
    if length >= VERY_LARGE_INTEGER:
        tokenizer.model_max_length = context_length(unwrap(model)) or length
    tokenizer.padding_side = "left" if kind_of(unwrap(model)).continues_prompt else "right"
    try:
        tokenizer.save_pretrained(folder)
    finally:
        tokenizer.padding_side, tokenizer.model_max_length = side, length


def check_saveable(model: Any, will_be_spread: bool = False) -> None:
    """
    Finds what would make saving fail, so that it fails before training.

    Settings of generation that Transformers refuses to save because they have no effect are unset, with a warning.

    Args:
        model (`PreTrainedModel` or `PeftModel`): the student.
        will_be_spread (`bool`, *optional*, defaults to `False`): its weights will be spread over processes, so whether
            an adapter's base can be had by name is found out now.

    Raises:
        InputError: naming what cannot be saved, and what to do.
    """
    _check_method_and_settings(model)
    if will_be_spread:
        settle_base(model)


def _check_method_and_settings(model: Any) -> None:
    if quantisation_of(model) == "gguf":
        raise InputError(
            "This model was read from a GGUF file by Transformers, which cannot save it. Load it with "
            "sinkd_llm.load_model, which gives an ordinary model."
        )
    _mend_generation_settings(unwrap(model))


def _mend_generation_settings(model: Any) -> None:
    settings = getattr(model, "generation_config", None)
    if settings is None:
        return
    try:
        settings.validate(strict=True)
        return
    except ValueError as error:
        idle = re.findall(r"^- `(\w+)`:", str(error), re.MULTILINE)
    for name in idle:
        logger.warning(
            "The student's generation_config has %s=%r, which has no effect beside its other settings and which "
            "Transformers therefore refuses to save; it is unset.",
            name,
            getattr(settings, name),
        )
        setattr(settings, name, None)
    try:
        settings.validate(strict=True)
    except ValueError as error:
        said = " ".join(str(error).split())
        raise InputError(
            f"The student's generation_config cannot be saved: {said} Change it in the model's "
            "generation_config.json, or in model.generation_config."
        ) from error


def _write(model: Any, folder: Path, state_dict: dict[str, Tensor] | None, source: ModelSource | None) -> str | None:
    """Writes the weights; gives the dtype in which an adapter was folded in for it, or `None`."""
    from peft import PeftModel

    if not isinstance(model, PeftModel):
        model.save_pretrained(folder, state_dict=state_dict)
        return None
    if not loads_merged_only(model):
        _save_adapted(model, folder, state_dict, source)
        return None
    with tempfile.TemporaryDirectory(prefix="adapter-", dir=folder) as parts:
        _save_adapted(model, Path(parts), state_dict, source)
        merged = load_again(model, Path(parts), merge_adapter=True)
    merged.save_pretrained(folder)
    return str(merged.dtype).removeprefix("torch.")


def _kept(staging: Path, folder: Path) -> str:
    """Keeps what was written for whoever looks into it, and says where."""
    target = Path(tempfile.mkdtemp(prefix="unlike-the-student-", dir=folder))
    for entry in staging.iterdir():
        shutil.move(entry, target / entry.name)
    return (
        f"It is kept in {target}, and {folder} holds what it held; the run's last checkpoint, if it wrote any, holds "
        "what was trained, too. Report this, or save without the comparison (check_saved false)."
    )


def _empty(folder: Path) -> None:
    for entry in folder.iterdir():
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


def _save_adapted(model: Any, folder: Path, state_dict: dict[str, Tensor] | None, source: ModelSource | None) -> None:
    # With its base beside it, an adapter need not carry embeddings that were resized.
    embeddings: bool | str = False if source is None else "auto"
    model.save_pretrained(folder, save_embedding_layers=embeddings, state_dict=state_dict)
    (folder / README).unlink(missing_ok=True)  # PEFT's template, in which every entry is blank
    name = next(iter(model.peft_config))
    if (folder / name / ADAPTER_CONFIG).is_file():  # PEFT gives an adapter that is not called "default" its own folder
        for file in (folder / name).iterdir():
            shutil.move(file, folder / file.name)
        (folder / name).rmdir()

    adapter_config = folder / ADAPTER_CONFIG
    config = json.loads(adapter_config.read_text(encoding="utf-8"))
    if source is None:
        _save_base(model, folder, state_dict)
        config["base_model_name_or_path"], config["revision"] = BASE_REFERENCE, None
    else:
        # PEFT stores the path as it was given, which another working directory would not find.
        config["base_model_name_or_path"] = source.path
        config["revision"] = None if source.revision == "main" else source.revision
    if isinstance(config.get("init_lora_weights"), str):
        config["init_lora_weights"] = True  # to begin like PiSSA once more would change the base once more
    adapter_config.write_text(json.dumps(config, indent=2, sort_keys=True), encoding="utf-8")


def _save_base(model: Any, folder: Path, state_dict: dict[str, Tensor] | None) -> None:
    base = model.get_base_model()
    weights = base_weights(model, state_dict)
    target = folder / BASE_FOLDER
    with saving_given_weights(base):
        base.save_pretrained(target, state_dict=weights)

    index: dict[str, Any]
    if (target / WEIGHTS_INDEX).is_file():
        index = json.loads((target / WEIGHTS_INDEX).read_text(encoding="utf-8"))
    else:
        from safetensors import safe_open

        with safe_open(target / WEIGHTS, framework="pt") as stored:
            size = (target / WEIGHTS).stat().st_size
            index = {
                "metadata": {"total_size": size},
                "weight_map": dict.fromkeys(stored.keys(), WEIGHTS),
            }
    index["weight_map"] = {name: f"{BASE_FOLDER}/{shard}" for name, shard in index["weight_map"].items()}
    (folder / WEIGHTS_INDEX).write_text(json.dumps(index, indent=2), encoding="utf-8")
    for file in target.iterdir():  # config, generation config, the code of a custom model
        if file.suffix in (".json", ".py") and file.name != WEIGHTS_INDEX:
            shutil.copy2(file, folder / file.name)
