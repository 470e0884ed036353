"""`sinkd env`: versions, devices, memory, and what is missing with the command
that installs it.

With `--estimate recipe.yaml`: the memory that the recipe's run needs, on one
device and on several.
"""

import argparse
import os
import platform
from collections.abc import Sequence
from importlib.metadata import metadata, requires

from packaging.requirements import Requirement

from sinkd_llm.cli.command_parser import CommandParser
from sinkd_llm.cli.printing import show_wrapped
from sinkd_llm.environment import package_version, total_memory_bytes, versions
from sinkd_llm.errors import InputError, shown
from sinkd_llm.terminal import say, show
from sinkd_llm.training.settings.rules import RANGES
from sinkd_llm.units import format_bytes, parse_bytes

PACKAGE = "sinkd-llm"
# What the extras of this package are for; which there are, and what they bring, its metadata say.
PURPOSES = {
    "deepspeed": "ZeRO sharding over several GPUs",
    "export": "students for ONNX Runtime",
    "serve": "the HTTP server",
    "quant": "4-bit and 8-bit models",
    "eval": "the same task files in lm-evaluation-harness",
    "triton": "a test of the GPU kernels without a GPU",
    "served": "a server for a test",
    "bench": "the benchmarks",
    "dev": "all tests",
}
# Of more packages the versions are not shown.
_MOST_PACKAGES = 4


def main(argv: Sequence[str]) -> int:
    """Print what a bug report needs, or what a run needs."""
    parser = CommandParser(
        prog="sinkd env",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="After --estimate, any flag of sinkd distill and finetune overrides the recipe.",
    )
    parser.add_argument("--estimate", metavar="RECIPE.yaml", help="estimate the memory of this run")
    parser.add_argument("--memory", help="memory of one device, such as 24GB; default: of this machine's device")
    parser.add_argument("--num_devices", type=int, help="most devices to estimate for; default: the GPUs here, or 8")
    known, rest = parser.parse_known_args(list(argv))
    if known.estimate is not None:
        return _estimate(known.estimate, known.memory, known.num_devices, rest)
    if rest or known.memory is not None or known.num_devices is not None:
        first = shown(rest[0])[1:-1] if rest else "--memory or --num_devices"
        raise InputError(f"{first} needs --estimate RECIPE.yaml; see 'sinkd env --help'.")
    lines = dict(versions())
    lines["platform"] = platform.platform()
    lines |= _devices()
    lines["memory"] = format_bytes(total_memory_bytes())
    _print("Versions and devices", lines)
    _print("Extras", {name: _extra(name, packages) for name, packages in extras().items()})
    _print("Bundled models", _bundled())
    return 0


def _estimate(recipe: str, memory: str | None, devices: int | None, overrides: Sequence[str]) -> int:
    from sinkd_llm.cli.flag_table import check_names
    from sinkd_llm.cli.recipe_file import read_config
    from sinkd_llm.cli.stand_in import stand_in

    if devices is not None and (problem := RANGES["num_devices"].refusal(devices)) is not None:
        raise InputError(f"--num_devices {problem}")
    size = None if memory is None else parse_bytes(memory, "--memory")
    given = {
        *read_config(recipe, "--estimate"),
        *(word.split("=")[0].replace("-", "_").removeprefix("__") for word in overrides),
    }
    has_teacher = bool(given & {"teacher_model_name_or_path", "teacher_cache", "teacher_file", "teacher_url"})
    command, words = "distill" if has_teacher else "finetune", ["--config", recipe, *overrides]
    check_names(command, words)
    import torch

    from sinkd_llm.cli.memory_table import show_estimate
    from sinkd_llm.cli.parsing import parse_training
    from sinkd_llm.memory import NotCountedError
    from sinkd_llm.models.names import is_here
    from sinkd_llm.runs.memory import estimate_memory

    task_args, training_args, model_args = parse_training(command, words)
    assumed = stand_in(training_args.teacher_model_name_or_path, recipe)
    if assumed is not None:
        say(
            f"The teacher {training_args.teacher_model_name_or_path} is not there yet: it is counted as {assumed[0]}, "
            f"from which {assumed[1]} trains it."
        )
    if (base := stand_in(model_args.model_name_or_path, recipe)) is not None:
        say(f"The model {model_args.model_name_or_path} is not there yet: it is counted as {base[0]} ({base[1]}).")
        model_args.model_name_or_path = base[0]
    try:
        estimate = estimate_memory(task_args, training_args, model_args, stand_in=assumed and assumed[0])
    except InputError as error:
        flags = {
            "--teacher_model_name_or_path": None if assumed else training_args.teacher_model_name_or_path,
            "--model_name_or_path": model_args.model_name_or_path,
        }
        absent = [flag for flag, name in flags.items() if name and not is_here(name)]
        if absent and not isinstance(error, NotCountedError):
            hint = f"If it is not trained yet, name one of its size: {absent[0]} smollm2-135m."
            raise InputError(f"{error} {hint}") from error
        raise

    gpus = torch.cuda.device_count()
    if size is not None:
        memory_is = "--memory"
    elif gpus:
        size, memory_is = torch.cuda.get_device_properties(0).total_memory, torch.cuda.get_device_name(0)
    else:
        size, memory_is = total_memory_bytes(), "this machine's memory: no GPU here"
    show_estimate(estimate, devices or gpus or 8, size, memory_is)
    return 0


def _print(title: str, lines: dict[str, str]) -> None:
    show(f"{title}:")
    width = max(map(len, lines)) + 2
    for name, text in lines.items():
        show_wrapped(f"  {name:<{width}}{text}", indent=" " * (width + 2))


def _devices() -> dict[str, str]:
    import torch

    found = {"cpu": f"{os.cpu_count()} cores, {torch.get_num_threads()} torch threads"}
    count = torch.cuda.device_count()
    found["gpus"] = f"{count}, CUDA {torch.version.cuda}" if count else "none that this PyTorch can use"
    for index in range(count):
        memory = torch.cuda.get_device_properties(index).total_memory
        found[f"cuda:{index}"] = f"{torch.cuda.get_device_name(index)}, {format_bytes(memory)}"
    if torch.backends.mps.is_available():
        found["mps"] = "available"
    return found


def extras() -> dict[str, list[str]]:
    """The distributions that each extra of this package brings on this system."""
    found: dict[str, list[str]] = {name: [] for name in metadata(PACKAGE).get_all("Provides-Extra") or ()}
    for requirement in map(Requirement, requires(PACKAGE) or ()):
        for name, packages in found.items():
            marker = requirement.marker
            if marker is not None and marker.evaluate({"extra": name}) and not marker.evaluate({"extra": ""}):
                packages.append(requirement.name)
    return found


def _extra(name: str, packages: Sequence[str]) -> str:
    versions = {package: package_version(package) for package in packages}
    missing = [package for package, version in versions.items() if version is None]
    if missing:
        state = f"missing {', '.join(missing)}: pip install '{PACKAGE}[{name}]'"
    elif len(versions) <= _MOST_PACKAGES:
        state = ", ".join(f"{package} {version}" for package, version in versions.items()) or "nothing on this system"
    else:
        state = f"all {len(versions)} packages"
    return f"{state}  ({PURPOSES.get(name, 'no purpose is written down')})"


def _bundled() -> dict[str, str]:
    from sinkd_llm.models import BUNDLED

    lines = {}
    for name, model in BUNDLED.items():
        present = "present" if model.locate() is not None else f"missing: {model.install}"
        lines[name] = f"{present}  ({model.description}, {model.licence})"
    return lines
