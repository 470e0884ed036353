"""Saving a student so that its folder loads by itself.

A full model is saved as Transformers saves it. A LoRA student is saved as PEFT saves it when its base
can be had by name again (a hub id, a folder that holds the whole base). When it cannot (the base was
cut from a teacher, merged, read from a GGUF file, or built in memory), the base goes along:

    student/
      adapter_config.json  adapter_model.safetensors     the adapter
      config.json  model.safetensors.index.json          the base, as an index into base/
      tokenizer.json …
      base/  config.json  model.safetensors              the base, stored once

Transformers takes a folder with `config.json` and `adapter_config.json` for a complete model with an
adapter and loads both; PEFT is given `base/` and the folder. Both read the same weight file, all paths
are relative, and nothing is applied twice.
"""

import json
import shutil
from pathlib import Path
from typing import Any

from torch import Tensor

from sinkd_llm.errors import InputError
from sinkd_llm.models.architectures import unwrap
from sinkd_llm.models.gguf import quiet_transformers
from sinkd_llm.models.sources import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    BASE_FOLDER,
    BASE_REFERENCE,
    CONFIG,
    WEIGHTS,
    WEIGHTS_INDEX,
    ModelSource,
    resolve_model_source,
)


def save_student(
    model: Any,
    tokenizer: Any,
    output_dir: str | Path,
    *,
    state_dict: dict[str, Tensor] | None = None,
) -> None:
    """
    Writes a student and its tokenizer to a folder that plain Transformers and PEFT code loads.

    `AutoModelForCausalLM.from_pretrained(folder)` and `AutoTokenizer.from_pretrained(folder)` work from
    any working directory, and after the folder was moved. What an earlier student left in the folder
    is removed. Weights are safetensors; tied ones are stored once.

    Args:
        model (`PreTrainedModel` or `PeftModel`): the student.
        tokenizer (`PreTrainedTokenizerBase`): its tokenizer.
        output_dir (`str` or `Path`): made if it does not exist.
        state_dict (`dict`, *optional*): the gathered weights, where the model itself holds only a part
            of them (DeepSpeed stage 3, FSDP).

    Raises:
        InputError: if `output_dir` is a file, or the model's weights are still packed as in a GGUF file.
    """
    from peft import PeftModel

    folder = Path(output_dir)
    if folder.is_file():
        raise InputError(f"Cannot save to {folder}: it is a file. Give a folder.")
    method = getattr(unwrap(model), "quantization_method", None)
    if str(getattr(method, "value", method)) == "gguf":
        raise InputError(
            "This model was read from a GGUF file by Transformers, which cannot save it. Load it with "
            "sinkd_llm.load_model, which gives an ordinary model."
        )
    folder.mkdir(parents=True, exist_ok=True)
    _remove_earlier(folder)
    with quiet_transformers():
        if isinstance(model, PeftModel):
            _save_adapted(model, folder, state_dict)
        else:
            model.save_pretrained(folder, state_dict=state_dict)
    tokenizer.save_pretrained(folder)


def _remove_earlier(folder: Path) -> None:
    """A full model and an adapter in one folder would be loaded together."""
    names = [CONFIG, ADAPTER_CONFIG, ADAPTER_WEIGHTS, WEIGHTS, WEIGHTS_INDEX]
    for file in [*(folder / name for name in names), *folder.glob("model-*-of-*.safetensors")]:
        file.unlink(missing_ok=True)
    if (folder / BASE_FOLDER / CONFIG).is_file():
        shutil.rmtree(folder / BASE_FOLDER)


def _save_adapted(model: Any, folder: Path, state_dict: dict[str, Tensor] | None) -> None:
    base = model.get_base_model()
    source = _source_by_name(base)
    # With its base beside it, an adapter need not carry embeddings that were resized.
    embeddings: bool | str = False if source is None else "auto"
    model.save_pretrained(folder, save_embedding_layers=embeddings, state_dict=state_dict)

    adapter_config = folder / ADAPTER_CONFIG
    config = json.loads(adapter_config.read_text(encoding="utf-8"))
    if source is None:
        _save_base(model, base, folder, state_dict)
        config["base_model_name_or_path"], config["revision"] = BASE_REFERENCE, None
    else:
        # PEFT stores the path as it was given, which another working directory would not find.
        config["base_model_name_or_path"] = source.path
        config["revision"] = None if source.revision == "main" else source.revision
    adapter_config.write_text(json.dumps(config, indent=2, sort_keys=True), encoding="utf-8")


def base_by_name(model: Any) -> bool:
    """Whether `model` is an adapter that is saved alone, because its base can be had by name again."""
    from peft import PeftModel

    return isinstance(model, PeftModel) and _source_by_name(model.get_base_model()) is not None


def _source_by_name(base: Any) -> ModelSource | None:
    """The hub repository or folder that gives the weights of `base` again, or `None`."""
    source: ModelSource | None = getattr(base, "sinkd_source", None)
    if source is None and base.name_or_path:  # loaded with Transformers itself
        try:
            source = resolve_model_source(base.name_or_path)
        except InputError:
            return None
    # Plain Transformers code knows no bundled names, and does not read a GGUF file by this path.
    return source if source and source.kind in ("hub", "folder") else None


def _save_base(model: Any, base: Any, folder: Path, state_dict: dict[str, Tensor] | None) -> None:
    weights = _without_adapter(model, base, state_dict)
    target = folder / BASE_FOLDER
    quantizer = getattr(base, "hf_quantizer", None)
    try:
        # Transformers drops the given weights of a quantised model for its own state, adapter and all.
        base.hf_quantizer = None
        base.save_pretrained(target, state_dict=weights)
    finally:
        base.hf_quantizer = quantizer

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


def _without_adapter(model: Any, base: Any, state_dict: dict[str, Tensor] | None) -> dict[str, Tensor]:
    """The weights of `base` under the names they had before PEFT put its layers around them."""
    if state_dict is None:
        weights = base.state_dict()
    else:
        prefix = "base_model.model."
        weights = {name.removeprefix(prefix): value for name, value in state_dict.items()}
    adapter = getattr(model.base_model, "prefix", None)  # e.g. "lora_"; prompt tuning wraps no layer
    return {
        name.replace(".base_layer.", ".").replace(".original_module.", "."): value
        for name, value in weights.items()
        if not (adapter and f".{adapter}" in name) and ".modules_to_save." not in name
    }
