"""Optimal transport between two sets of distributions. Torch only: knows no language model."""

from sinkd_llm.optimal_transport.cost import COST_NORMS, pairwise_cost
from sinkd_llm.optimal_transport.sinkhorn import GRADIENTS, TransportPlan, check_solver, sinkhorn
from sinkd_llm.optimal_transport.top_k_cost import pairwise_top_k_cost

__all__ = [
    "COST_NORMS",
    "GRADIENTS",
    "TransportPlan",
    "check_solver",
    "pairwise_cost",
    "pairwise_top_k_cost",
    "sinkhorn",
]
