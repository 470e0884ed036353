"""Distil large language models into small ones by Sinkhorn distance minimisation (SinKD).

Names are imported on first use, so that `import sinkd_llm` and `sinkd --help` do not wait for torch.
"""

from typing import TYPE_CHECKING, Any

from sinkd_llm._version import __version__

_LAZY = {
    "SinKDConfig": "sinkd_llm.training.config",
    "SinKDTrainer": "sinkd_llm.training.trainer",
    "InputError": "sinkd_llm.errors",
    "load_task": "sinkd_llm.tasks",
    "list_tasks": "sinkd_llm.tasks",
    "load_model": "sinkd_llm.models",
    "load_tokenizer": "sinkd_llm.models",
    "select_layers": "sinkd_llm.models",
    "evaluate_task": "sinkd_llm.evaluation",
    "load_student": "sinkd_llm.answering.load",
    "pairwise_cost": "sinkd_llm.optimal_transport",
    "sinkhorn": "sinkd_llm.optimal_transport",
    "DistillationObjective": "sinkd_llm.objectives",
}

__all__ = ["__version__", *_LAZY]

if TYPE_CHECKING:
    from sinkd_llm.answering.load import load_student
    from sinkd_llm.errors import InputError
    from sinkd_llm.evaluation import evaluate_task
    from sinkd_llm.models import load_model, load_tokenizer, select_layers
    from sinkd_llm.objectives import DistillationObjective
    from sinkd_llm.optimal_transport import pairwise_cost, sinkhorn
    from sinkd_llm.tasks import list_tasks, load_task
    from sinkd_llm.training.config import SinKDConfig
    from sinkd_llm.training.trainer import SinKDTrainer


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        from importlib import import_module

        value = getattr(import_module(_LAZY[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
