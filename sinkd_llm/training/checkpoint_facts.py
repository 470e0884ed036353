"""What a checkpoint says of the run that wrote it, and what another run that goes on from it has otherwise."""

import hashlib
from collections.abc import Iterator, Mapping
from math import prod
from typing import TYPE_CHECKING, Any

from torch import nn

from sinkd_llm.models.kinds.over_choices import OverChoices
from sinkd_llm.models.origin import name_of, new_modules_of, noted_layers
from sinkd_llm.models.partitioning import is_part, whole_shape
from sinkd_llm.models.wrappers import unwrap
from sinkd_llm.teachers import CachedTeacher

if TYPE_CHECKING:
    from sinkd_llm.teachers.contract import Teacher
    from sinkd_llm.training.trainer import SinKDTrainer

# Numbers of each parameter that stand for it: a sum over all would read gigabytes at every start.
_SAMPLED = 64
_ROWS_AT_ONCE = 1000
# What the optimizer's state brings along, so that another value in the settings would do nothing.
_OPTIMIZER = ("learning_rate", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "optim_args")
# What decides which rows a step gets.
_ORDER = (
    *("seed", "data_seed", "per_device_train_batch_size", "gradient_accumulation_steps", "dataloader_drop_last"),
    *("train_sampling_strategy", "group_column", "unlabelled_ratio"),
)
# What may change between two parts of a run. The objective's own settings are added.
_FREE = ("max_steps", "num_train_epochs", "lr_scheduler_type", "warmup_steps", "max_grad_norm", "bf16", "fp16")


def run_facts(trainer: "SinKDTrainer") -> dict[str, Any]:
    """
    What must be, or should be, the same when a run goes on; to be asked before training changes the weights.

    Args:
        trainer ([`SinKDTrainer`]): of the run.

    Returns:
        `dict`: what JSON can hold, by group: `student`, `teacher`, `adapter`, `optimizer`, `rows`, `order`, `free`.
    """
    args = trainer.args
    given = trainer.optimizer
    # Alone they are what the code calls them, but a scheduler's type is an enumeration.
    free = {name: _plain(getattr(args, name, None)) for name in _FREE}
    free |= trainer.forward.objective.by_name()
    if isinstance(trainer.forward.kind, OverChoices):
        free["choice_normalisation"] = trainer.forward.kind.normalisation
    return {
        "student": _student(trainer.model),
        "teacher": _teacher(trainer.teacher),
        "adapter": _adapter(trainer.model),
        "optimizer": {
            "optim": type(given).__name__ if given is not None else _plain(args.optim),
            **{name: _plain(getattr(args, name, None)) for name in _OPTIMIZER},
        },
        "rows": _rows(trainer.train_dataset),
        "order": {**{name: _plain(getattr(args, name, None)) for name in _ORDER}, "processes": args.world_size},
        "free": free,
    }


def differences(stored: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """
    What a run has otherwise than the run of a checkpoint, in words: what it cannot go on with, and what it can.

    Args:
        stored, now: two results of [`run_facts`]; facts that one of them lacks are not compared.
    """
    refused = []
    student, ours = stored.get("student") or {}, now["student"]
    for name, words in (("class", ""), ("layers", " layers"), ("parameters", " parameters"), ("dtype", "")):
        if name in student and student[name] != ours[name]:
            refused.append(f"the student ({name}): {student[name]}{words} in the checkpoint, {ours[name]}{words} now")
            break
    else:
        if student.get("kept") and ours["kept"] and student["kept"] != ours["kept"]:
            refused.append(
                f"the student's layers of its teacher or model: {_in_words(student['kept'])} in the checkpoint, "
                f"{_in_words(ours['kept'])} now; to have the former, list them in layer_selection"
            )
        for name, words in (("shapes", "its weights have other names or shapes"), ("weights", "its weights differ")):
            if student.get(name) is not None and ours[name] is not None and student[name] != ours[name]:
                there, here = student.get("name") or "it", ours["name"] or "it"
                refused.append(f"the student: {words} ({there} in the checkpoint, {here} now)")
                break
    refused += _adapter_differences(stored["adapter"], now["adapter"]) if "adapter" in stored else []
    refused += _changes(stored.get("optimizer"), now["optimizer"])
    rows = stored.get("rows")
    if rows is not None and now["rows"] is not None and rows != now["rows"]:
        counts = f"{rows.get('count')} rows in the checkpoint, {now['rows']['count']} now"
        same = rows.get("count") == now["rows"]["count"]
        refused.append(f"the training rows: {'other tokens or another order of the rows' if same else counts}")
    refused += _changes(stored.get("order"), now["order"])
    noted = _teacher_change(stored["teacher"], now["teacher"]) if "teacher" in stored else []
    return refused, [*noted, *_changes(stored.get("free"), now["free"])]


def _teacher_change(stored: Any, now: Any) -> list[str]:
    """Names are compared where hashes cannot be: one folder may have two names."""
    there, here = _teacher_words(stored), _teacher_words(now)
    if stored and now and all(stored[fact] == now[fact] for fact in ("cached", "dtype")):
        if stored["hash"] is not None and stored["hash"] == now["hash"]:
            return []
        if there == here and None not in (stored["hash"], now["hash"]):
            what = "answers" if now["cached"] else "weights"
            return [f"the teacher: {here} has other {what} than in the checkpoint"]
    return [] if there == here else [f"the teacher: {there} in the checkpoint, {here} now"]


def _teacher_words(teacher: Any) -> str:
    if teacher is None:
        return "none"
    name = teacher["name"] or "a model without a name"
    return f"a cache of {name}" if teacher["cached"] else name


def _in_words(kept: Mapping[str, Any]) -> str:
    """As `layer_selection` lists layers."""
    return "; ".join(",".join(map(str, indices)) for indices in kept.values())


def _changes(stored: Any, now: Mapping[str, Any]) -> list[str]:
    if not isinstance(stored, Mapping):
        return []
    return [
        f"{name}: {stored[name]} in the checkpoint, {now[name]} now"
        for name in stored
        if name in now and stored[name] != now[name]
    ]


def _adapter_differences(stored: Any, now: Any) -> list[str]:
    if stored is None and now is None:
        return []
    if stored is None:
        return ["use_peft: the checkpoint holds a whole student, and this run trains an adapter"]
    if now is None:
        return [f"use_peft: the checkpoint holds a {stored.get('type', 'PEFT')} adapter, and this run trains none"]
    return [
        f"lora_{name}: {_change(stored[name], now[name])}"
        for name in stored
        if name in now and stored[name] != now[name]
    ]


def _change(stored: Any, now: Any) -> str:
    """Of two values what is worth a line: of long lists, what only one of them has."""
    if not (isinstance(stored, list) and isinstance(now, list)):
        return f"{stored} in the checkpoint, {now} now"
    only = [sorted(set(one) - set(other)) for one, other in ((stored, now), (now, stored))]
    parts = [
        f"{', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''} {where}"
        for names, where in zip(only, ("only in the checkpoint", "only now"), strict=True)
        if names
    ]
    return "; ".join(parts)


def _student(model: Any) -> dict[str, Any]:
    base = unwrap(model)
    config = getattr(base, "config", None)
    prefix = getattr(getattr(model, "base_model", None), "prefix", None) if hasattr(model, "peft_config") else None
    parameters = sorted(_own_parameters(base, prefix))
    shapes, weights = hashlib.sha256(), hashlib.sha256()
    count, readable = 0, _base_stays(model) or name_of(base) is not None
    new = new_modules_of(base)
    for name, parameter in parameters:
        shape = whole_shape(parameter)
        shapes.update(f"{name} {shape}\n".encode())
        count += prod(shape)
        if any(part in new for part in name.split(".")):
            continue  # it starts at random
        numbers = _sample(parameter)
        if numbers is None:
            readable = False
            continue
        weights.update(numbers)
    layers, choice = getattr(config, "num_hidden_layers", None), noted_layers(base)
    return {
        "class": type(base).__name__,
        "layers": layers if isinstance(layers, int) else None,
        "kept": choice.as_dict()["kept"] if choice is not None else None,
        "parameters": count,
        "dtype": str(parameters[0][1].dtype).removeprefix("torch.") if parameters else None,
        "name": name_of(base),
        "shapes": shapes.hexdigest(),
        "weights": weights.hexdigest() if readable else None,
    }


def _sample(parameter: Any) -> bytes | None:
    """The numbers that stand for a parameter; `None` where this process does not hold it."""
    if is_part(parameter) or parameter.is_meta:
        return None
    flat = parameter.detach().reshape(-1)
    return bytes(flat[:: max(1, flat.numel() // _SAMPLED)][:_SAMPLED].float().cpu().numpy().tobytes())


def _teacher(teacher: "Teacher | None") -> dict[str, Any] | None:
    """A teacher's name, and a hash of the sums of a cache's files, or of numbers of each of a model's parameters."""
    if teacher is None:
        return None
    if isinstance(teacher, CachedTeacher):
        manifest = teacher.manifest
        records = [*manifest.shards, *([manifest.index] if manifest.index is not None else [])]
        digest = hashlib.sha256("".join(record["checksum"] for record in records).encode())
        return {"name": manifest.teacher.name, "cached": True, "dtype": None, "hash": digest.hexdigest()}
    model = unwrap(teacher.model)
    parameters = [parameter for _, parameter in sorted(model.named_parameters())]
    samples = [_sample(parameter) for parameter in parameters]
    known = [sample for sample in samples if sample is not None]
    return {
        "name": getattr(teacher, "name", None) or name_of(model),
        "cached": False,
        "dtype": str(parameters[0].dtype).removeprefix("torch.") if parameters else None,
        "hash": hashlib.sha256(b"".join(known)).hexdigest() if len(known) == len(samples) else None,
    }


def _own_parameters(base: nn.Module, prefix: str | None) -> Iterator[tuple[str, Any]]:
    """Those of the student without its adapter, under the names that they have without one."""
    for name, parameter in base.named_parameters():
        if (prefix and f".{prefix}" in f".{name}") or ".modules_to_save." in name:
            continue
        yield name.replace(".base_layer.", ".").replace(".original_module.", "."), parameter


def _base_stays(model: nn.Module) -> bool:
    """Whether a base is frozen under an adapter that leaves it as it was loaded."""
    configs = getattr(model, "peft_config", None)
    if not configs:
        return False
    kept = (True, False, None, "gaussian")
    return all(getattr(config, "init_lora_weights", True) in kept for config in configs.values())


def _adapter(model: Any) -> dict[str, Any] | None:
    configs = getattr(model, "peft_config", None)
    if not configs:
        return None
    return adapter_facts(next(iter(configs.values())).to_dict())


def adapter_facts(config: Mapping[str, Any]) -> dict[str, Any]:
    """What must be the same of two adapters, of a PEFT configuration as a mapping or as its file."""
    names = {"r": "r", "lora_alpha": "alpha", "use_dora": "dora", "use_rslora": "rslora", "bias": "bias"}
    facts = {ours: _plain(config[theirs]) for theirs, ours in names.items() if theirs in config}
    facts["type"] = str(_plain(config.get("peft_type"))).removeprefix("PeftType.")
    for name in ("target_modules", "modules_to_save"):
        value = config.get(name)
        facts[name] = sorted(map(str, value)) if isinstance(value, (list, tuple, set)) else value
    return facts


def _rows(dataset: Any) -> dict[str, Any] | None:
    """The number of tokenised rows, and a hash of all they hold, in their order."""
    if dataset is None or not hasattr(dataset, "with_format"):
        return None
    import pyarrow as pa

    digest = hashlib.sha256()
    for batch in dataset.with_format("arrow").iter(batch_size=_ROWS_AT_ONCE):
        table = pa.table(batch).combine_chunks().replace_schema_metadata(None)
        stream = pa.BufferOutputStream()
        with pa.ipc.new_stream(stream, table.schema) as writer:
            writer.write_table(table)
        digest.update(memoryview(stream.getvalue()))
    return {"count": len(dataset), "hash": digest.hexdigest()}


def _plain(value: Any) -> Any:
    """A setting as JSON gives it back."""
    value = getattr(value, "value", value)
    return value if isinstance(value, (str, int, float, type(None))) else str(value)
