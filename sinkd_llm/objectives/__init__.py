"""What training minimises: tensors in, a loss and its named terms out."""

from sinkd_llm.objectives.couplings import COUPLINGS, TeacherSets, TransportedSettings
from sinkd_llm.objectives.divergences import (
    DIVERGENCE_CHOICES,
    DIVERGENCES,
    Divergence,
    by_autograd,
    cross_entropy,
    squared_error,
    temperature_factor,
)
from sinkd_llm.objectives.head_of import HeadOf
from sinkd_llm.objectives.joint import SPANNING_SCOPES, SpanningProblem
from sinkd_llm.objectives.mixture import DistillationObjective
from sinkd_llm.objectives.objective_settings import DIAGNOSTICS, FUSED, TERMS
from sinkd_llm.objectives.plan_part import LARGEST_PART, PlanPart
from sinkd_llm.objectives.problems import GROUP, TRANSPORT_SCOPES, VOCABULARIES, TransportSettings
from sinkd_llm.objectives.signals import DenseSignal, TeacherSignal, TopKSignal
from sinkd_llm.objectives.sinkd import SinKDTerm, sinkd_term
from sinkd_llm.objectives.state_terms import StateSettings, cosine_distances, queue_cross_entropies
from sinkd_llm.objectives.terms import ObjectiveOutput, Term, with_terms
from sinkd_llm.objectives.transported import TransportedTerm, transported_term

__all__ = [
    "COUPLINGS",
    "DIAGNOSTICS",
    "DIVERGENCES",
    "DIVERGENCE_CHOICES",
    "FUSED",
    "GROUP",
    "LARGEST_PART",
    "SPANNING_SCOPES",
    "TERMS",
    "TRANSPORT_SCOPES",
    "VOCABULARIES",
    "DenseSignal",
    "DistillationObjective",
    "Divergence",
    "HeadOf",
    "ObjectiveOutput",
    "PlanPart",
    "SinKDTerm",
    "SpanningProblem",
    "StateSettings",
    "TeacherSets",
    "TeacherSignal",
    "Term",
    "TopKSignal",
    "TransportSettings",
    "TransportedSettings",
    "TransportedTerm",
    "by_autograd",
    "cosine_distances",
    "cross_entropy",
    "queue_cross_entropies",
    "sinkd_term",
    "squared_error",
    "temperature_factor",
    "transported_term",
    "with_terms",
]
