"""
Names that other libraries keep to themselves: each stands in one place of the package, and is still there.

Nobody promises these names, so a release may drop one without a word. Here it is missed by its name, and what has to
change stands in the one module or folder beside it in the table.
"""

import argparse
import ast
import importlib
import inspect
import pkgutil
import tempfile
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import sinkd_llm

PACKAGE = Path(sinkd_llm.__file__).parent


class Private(NamedTuple):
    """A name, the one file or folder of the package that may use it, and how it is found."""

    name: str
    owner: str
    found: Callable[[str], Any]


def at(path: str) -> Callable[[str], Any]:
    """Finds a name on a module or a class: `module` or `module:Class`."""

    def find(name: str) -> Any:
        module, _, inner = path.partition(":")
        place: Any = importlib.import_module(module)
        for part in filter(None, inner.split(".")):
            place = getattr(place, part)
        return getattr(place, name)

    return find


def on(make: Callable[[], Any]) -> Callable[[str], Any]:
    """Finds a name on an object."""
    return lambda name: getattr(make(), name)


def written_by(module: str) -> Callable[[str], Any]:
    """Finds a name that a library gives to objects while it runs, in the source of the module that does."""

    def find(name: str) -> Any:
        words = {node.attr for node in _nodes(module) if isinstance(node, ast.Attribute)}
        words |= {node.value for node in _nodes(module) if isinstance(node, ast.Constant)}
        if name not in words:
            raise AttributeError(f"the source of {module} has no {name}")

    return find


def parameter_of(path: str, function: str) -> Callable[[str], Any]:
    """Finds a name among the parameters of a function."""
    return lambda name: inspect.signature(at(path)(function)).parameters[name]


def module(path: str) -> Callable[[str], Any]:
    return lambda _: importlib.import_module(path)


def _nodes(path: str) -> Iterator[ast.AST]:
    return ast.walk(ast.parse(inspect.getsource(importlib.import_module(path))))


def _torch_module() -> Any:
    import torch

    return torch.nn.Module()


def _module() -> Any:
    import torch

    return torch.nn.Linear(1, 1)


def _compiled() -> Any:
    import torch

    return torch.compile(torch.nn.Linear(1, 1))


def _storage() -> Any:
    import torch

    return torch.empty(1).untyped_storage()


def _hooked() -> Any:
    from accelerate.hooks import ModelHook, add_hook_to_module

    return add_hook_to_module(_torch_module(), ModelHook())


def _rows() -> Any:
    import datasets

    return datasets.Dataset.from_dict({"a": [1]})


def _config() -> Any:
    from transformers import AutoConfig

    return AutoConfig.for_model("llama")


def _mapped() -> Any:
    import numpy as np

    with tempfile.NamedTemporaryFile() as file:
        Path(file.name).write_bytes(b"1")
        return np.memmap(file.name, np.uint8, mode="r")


_TRAINER = at("transformers:Trainer")
_PARSER = on(argparse.ArgumentParser)
TABLE = [
    # transformers
    *(
        Private(name, "training/", _TRAINER)
        for name in (
            *("_determine_best_metric", "_finish_current_push", "_get_eval_sampler", "_get_grad_norm"),
            *("_get_num_items_in_batch", "_get_output_dir"),
            *("_get_train_sampler", "_load_from_checkpoint", "_load_optimizer_and_scheduler", "_load_rng_state"),
            *("_prepare_inputs", "_push_from_checkpoint"),
            *("_run_epoch", "_save", "_save_checkpoint", "_save_optimizer_and_scheduler", "_save_rng_state"),
        )
    ),
    Private("_internal_call", "training/saving_trainer.py", parameter_of("transformers:Trainer", "save_model")),
    Private("_tr_loss", "training/resuming.py", written_by("transformers.trainer")),
    Private("_total_loss_scalar", "training/resuming.py", written_by("transformers.trainer")),
    Private("_VALID_DICT_FIELDS", "training/config.py", at("transformers:TrainingArguments")),
    Private("_setup_devices", "training/config.py", at("transformers:TrainingArguments")),
    Private("_from_config", "models/layers.py", at("transformers:PreTrainedModel")),
    Private("_attn_implementation", "models/layers.py", on(_config)),
    Private("_is_stateful", "models/wrappers.py", at("transformers:PreTrainedModel")),
    Private("_no_split_modules", "teachers/placement.py", at("transformers:PreTrainedModel")),
    Private("_hf_peft_config_loaded", "models/adapter_checks.py", at("transformers:PreTrainedModel")),
    Private("_hf_deepspeed_config_weak_ref", "models/partitioning.py", at("transformers.integrations.deepspeed")),
    Private("_model_name_or_path", "models/gguf.py", written_by("transformers.integrations.ggml")),
    Private(
        "_raise_exceptions_for_missing_entries",
        "models/tokenizers.py",
        parameter_of("transformers.utils.hub", "cached_files"),
    ),
    Private("hf_quantizer", "models/quantisation.py", written_by("transformers.modeling_utils")),
    Private("quantization_method", "models/quantisation.py", written_by("transformers.quantizers.base")),
    # accelerate
    Private("_is_accelerate_prepared", "training/evaluating_trainer.py", written_by("accelerate.accelerator")),
    Private("_models", "training/evaluating_trainer.py", written_by("accelerate.accelerator")),
    Private("_original_forward", "models/outputs.py", written_by("accelerate.accelerator")),
    Private("_hf_hook", "models/layers.py", on(_hooked)),
    # bitsandbytes
    Private("Params4bit", "models/quantisation.py", at("bitsandbytes.nn")),
    Private("quant_state", "models/quantisation.py", written_by("bitsandbytes.nn.modules")),
    Private("SCB", "models/quantisation.py", written_by("bitsandbytes.nn.modules")),
    Private("support_avx512bf16_for_cpu", "models/quantisation.py", written_by("bitsandbytes.nn.modules")),
    # deepspeed
    *(
        Private(name, "models/partitioning.py", written_by("deepspeed.runtime.zero.partition_parameters"))
        for name in ("ds_id", "ds_shape", "ds_tensor")
    ),
    # torch
    Private("_parameters", "models/layers.py", on(_torch_module)),
    Private("_buffers", "models/layers.py", on(_torch_module)),
    Private("_non_persistent_buffers_set", "models/finite.py", on(_torch_module)),
    Private("_orig_mod", "models/wrappers.py", on(_compiled)),
    *(Private(name, "models/wrappers.py", on(_module)) for name in ("_forward_hooks", "_forward_pre_hooks")),
    Private("_cdata", "memory/tracing.py", on(_storage)),
    Private("_local_scalar_dense", "memory/tracing.py", on(lambda: importlib.import_module("torch").ops.aten)),
    Private("torch.utils._python_dispatch", "memory/tracing.py", module("torch.utils._python_dispatch")),
    Private("torch.utils._pytree", "memory/", module("torch.utils._pytree")),
    # datasets, numpy, rich
    Private("_fingerprint", "inputs/dataset.py", on(_rows)),
    Private("_mmap", "teachers/cache/arrays.py", on(_mapped)),
    Private("_cells", "terminal.py", on(lambda: importlib.import_module("rich.table").Column())),
    # argparse
    *(
        Private(name, "cli/", _PARSER)
        for name in ("_actions", "_check_value", "_get_value", "_option_string_actions", "_optionals")
    ),
    Private("_group_actions", "cli/", on(lambda: argparse.ArgumentParser().add_argument_group())),
    Private("_action_groups", "cli/", _PARSER),
    Private("_HelpAction", "cli/flag_table.py", at("argparse")),
    Private("_SubParsersAction", "cli/completing.py", at("argparse")),
    *(
        Private(name, "cli/help_texts.py", at("argparse:ArgumentDefaultsHelpFormatter"))
        for name in ("_format_action_invocation", "_format_args", "_get_help_string")
    ),
]
OWNERS = {private.name: private.owner for private in TABLE}
# Of named tuples these are documented.
_OF_TUPLES = {"_replace", "_asdict", "_fields", "_make"}


@pytest.mark.parametrize("private", TABLE, ids=lambda private: private.name)
def test_the_installed_libraries_have_each_name(private: Private) -> None:
    try:
        private.found(private.name)
    except (AttributeError, ImportError, KeyError) as error:
        pytest.fail(f"{private.name} is gone, which {private.owner} stands on: {error}")


def test_what_is_gone_is_missed() -> None:
    for find in (_TRAINER, on(_torch_module), written_by("accelerate.hooks"), parameter_of("json", "loads")):
        with pytest.raises((AttributeError, KeyError)):
            find("_no_such_name")
    with pytest.raises(ImportError):
        module("torch._no_such_module")("")


def used(tree: ast.AST) -> Iterator[tuple[str, bool]]:
    """Names that a module may have of other libraries, and whether such a name is certainly none of its own object."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            value = node.value
            yield node.attr, isinstance(value, ast.Call) and getattr(value.func, "id", "") == "super"
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.isidentifier():
            yield node.value, False
        elif isinstance(node, ast.keyword) and node.arg:
            yield node.arg, node.arg.startswith("_")
        elif isinstance(node, ast.Import):
            yield from ((alias.name, True) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.module.startswith("sinkd_llm"):
            yield node.module, True
            yield from ((f"{node.module}.{alias.name}", True) for alias in node.names)
            yield from ((alias.name, True) for alias in node.names)


def is_private(name: str) -> bool:
    return any(part.startswith("_") and not part.startswith("__") for part in name.split("."))


def own_names(tree: ast.AST) -> Iterator[str]:
    """What a module defines: functions, classes, variables, attributes of its own objects."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and _is_self(node.value):
            yield node.attr


def _is_self(node: ast.AST) -> bool:
    return isinstance(node, ast.Name) and node.id == "self"


def accessed(tree: ast.AST) -> set[str]:
    """Private attributes that are read or set, by a dot or by name."""
    found = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("getattr", "setattr", "hasattr", "delattr"):
            found |= {word.value for word in node.args[1:2] if isinstance(word, ast.Constant)}
    return {name for name in found if is_private(name)}


TREES = {
    path.relative_to(PACKAGE).as_posix(): ast.parse(path.read_text(encoding="utf-8"))
    for path in sorted(PACKAGE.rglob("*.py"))
}
OWN = {name for tree in TREES.values() for name in own_names(tree)} - OWNERS.keys()


@pytest.mark.parametrize("file", TREES)
def test_each_name_stands_with_its_owner(file: str) -> None:
    tree = TREES[file]
    for name, foreign in used(tree):
        if name in OWNERS:
            assert file.startswith(OWNERS[name]), f"{file} uses {name}, which {OWNERS[name]} owns: ask that instead"
        elif foreign and is_private(name) and name not in OWN | _OF_TUPLES:
            # From a private module everything is private; the module itself is in the table.
            assert any(name.startswith(f"{known}.") for known in OWNERS), f"{file} uses {name}: give it a line here"
    unknown = accessed(tree) - OWN - OWNERS.keys() - _OF_TUPLES
    assert not unknown, f"{file} uses {sorted(unknown)}: give each a line here"


@pytest.mark.parametrize("name", OWNERS)
def test_each_name_of_the_table_is_used_by_its_owner(name: str) -> None:
    trees = [tree for file, tree in TREES.items() if file.startswith(OWNERS[name])]
    parameters = {node.arg for tree in trees for node in ast.walk(tree) if isinstance(node, ast.arg)}
    replaced = {node.name for tree in trees for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    known = {found for tree in trees for found, _ in used(tree)} | parameters | replaced
    assert name in known, f"{name} is used no more"


def test_methods_that_replace_a_private_one_are_in_the_table() -> None:
    unknown = set()
    for info in pkgutil.walk_packages([str(PACKAGE)], "sinkd_llm."):
        if info.name.endswith("__main__") or (info.name.endswith("triton_l1") and find_spec("triton") is None):
            continue
        for cls in vars(importlib.import_module(info.name)).values():
            if not inspect.isclass(cls) or cls.__module__ != info.name:
                continue
            bases = [base for base in cls.__mro__ if not base.__module__.startswith(("sinkd_llm", "builtins"))]
            for name, value in vars(cls).items():
                mine = inspect.isfunction(value) and value.__module__ == info.name
                if mine and is_private(name) and any(name in vars(base) for base in bases):
                    unknown |= {name} - OWNERS.keys()
    assert not unknown, f"{sorted(unknown)} replace methods of other libraries: give each a line in the table"


def test_a_name_outside_of_its_place_is_found() -> None:
    tree = ast.parse("import torch.utils._pytree\nsuper()._save_checkpoint(1)\nx._orig_mod = getattr(x, '_other')")
    assert {name for name, foreign in used(tree) if foreign} == {"torch.utils._pytree", "_save_checkpoint"}
    assert accessed(tree) == {"_save_checkpoint", "_orig_mod", "_other"}
