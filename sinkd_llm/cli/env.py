"""`sinkd env`: versions, devices, memory, and what is missing with the command that installs it."""

import argparse
import os
import platform
from collections.abc import Sequence

from sinkd_llm.environment import package_version, total_memory_bytes, versions
from sinkd_llm.report import format_bytes
from sinkd_llm.terminal import show

# Extra of this package -> the distribution that it brings, and what it is for.
EXTRAS = {
    "quant": ("bitsandbytes", "4-bit and 8-bit models"),
    "deepspeed": ("deepspeed", "ZeRO sharding over several GPUs"),
    "eval": ("lm-eval", "the same task files in lm-evaluation-harness"),
}


def main(argv: Sequence[str]) -> int:
    """Print what a bug report needs."""
    parser = argparse.ArgumentParser(prog="sinkd env", description=__doc__)
    parser.parse_args(list(argv))
    lines = dict(versions())
    lines["platform"] = platform.platform()
    lines |= _devices()
    lines["memory"] = format_bytes(total_memory_bytes())
    _print("Versions and devices", lines)
    _print("Extras", {name: _extra(name, *about) for name, about in EXTRAS.items()})
    _print("Bundled models", _bundled())
    return 0


def _print(title: str, lines: dict[str, str]) -> None:
    show(f"{title}:")
    width = max(map(len, lines)) + 2
    for name, text in lines.items():
        show(f"  {name:<{width}}{text}")


def _devices() -> dict[str, str]:
    import torch

    found = {"cpu": f"{os.cpu_count()} cores, {torch.get_num_threads()} torch threads"}
    for index in range(torch.cuda.device_count()):
        memory = torch.cuda.get_device_properties(index).total_memory
        found[f"cuda:{index}"] = f"{torch.cuda.get_device_name(index)}, {format_bytes(memory)}"
    if torch.backends.mps.is_available():
        found["mps"] = "available"
    return found


def _extra(name: str, distribution: str, purpose: str) -> str:
    version = package_version(distribution)
    state = f"{distribution} {version}" if version else f"missing: pip install 'sinkd-llm[{name}]'"
    return f"{state}  ({purpose})"


def _bundled() -> dict[str, str]:
    from sinkd_llm.models import BUNDLED

    lines = {}
    for name, model in BUNDLED.items():
        present = "present" if model.locate() is not None else f"missing: {model.install}"
        lines[name] = f"{present}  ({model.description}, {model.licence})"
    return lines
