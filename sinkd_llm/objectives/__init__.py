"""What training minimises: tensors in, a loss and its named terms out."""

from sinkd_llm.objectives.divergences import (
    DIVERGENCES,
    cross_entropy,
    forward_kl,
    jensen_shannon,
    reverse_kl,
    squared_error,
    temperature_factor,
    total_variation,
)
from sinkd_llm.objectives.joint import SPANNING_SCOPES, SpanningProblem
from sinkd_llm.objectives.mixture import VOCABULARIES, DistillationObjective, ObjectiveOutput
from sinkd_llm.objectives.signals import TopKSignal
from sinkd_llm.objectives.sinkd import TRANSPORT_SCOPES, SinKDTerm, sinkd_term

__all__ = [
    "DIVERGENCES",
    "SPANNING_SCOPES",
    "TRANSPORT_SCOPES",
    "VOCABULARIES",
    "DistillationObjective",
    "ObjectiveOutput",
    "SinKDTerm",
    "SpanningProblem",
    "TopKSignal",
    "cross_entropy",
    "forward_kl",
    "jensen_shannon",
    "reverse_kl",
    "sinkd_term",
    "squared_error",
    "temperature_factor",
    "total_variation",
]
