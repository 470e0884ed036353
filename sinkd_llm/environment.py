"""What this machine has: package versions, devices, memory. Imports torch only when asked about it."""

import os
import platform
import sys
from importlib import metadata
from pathlib import Path

from sinkd_llm._version import __version__

PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets")


def package_version(name: str) -> str | None:
    """The installed version of a distribution, or `None`."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def versions() -> dict[str, str]:
    """Versions of this package, Python, and the packages that a result depends on."""
    found = {"sinkd-llm": __version__, "python": platform.python_version()}
    return found | {name: package_version(name) or "not installed" for name in PACKAGES}


def is_debugging() -> bool:
    """Whether `SINKD_DEBUG` asks for the traceback of every error, and for what libraries tell one another."""
    return os.environ.get("SINKD_DEBUG", "") not in ("", "0")


def default_device() -> str:
    """`cuda`, `mps` or `cpu`: the first that is here."""
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def describe_device(device: object) -> str:
    """`2 CPU threads (x86_64)`, or the name of the accelerator of a `torch.device`."""
    import torch

    kind = getattr(device, "type", str(device))
    if kind == "cuda":
        return torch.cuda.get_device_name(getattr(device, "index", None) or 0)
    if kind == "cpu":
        count = torch.get_num_threads()
        return f"{count} CPU thread{'' if count == 1 else 's'} ({platform.machine()})"
    return str(device)


def processor() -> str:
    """The processor's name, as the system has it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not on Linux
        lines = []
    names = (line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def peak_memory_bytes() -> int:
    """Largest resident memory of this process so far; 0 where the system does not say."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # kB everywhere but on macOS


def total_memory_bytes() -> int:
    """Memory of the machine; 0 where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 0
