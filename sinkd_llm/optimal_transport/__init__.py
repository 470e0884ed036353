"""Optimal transport between two sets of distributions. Torch only: knows no language model."""

from sinkd_llm.optimal_transport.cost import pairwise_cost
from sinkd_llm.optimal_transport.sinkhorn import GRADIENTS, TransportPlan, sinkhorn
from sinkd_llm.optimal_transport.tiles import COST_NORMS, add_cost, cost_gradient
from sinkd_llm.optimal_transport.top_k_cost import pairwise_top_k_cost

__all__ = [
    "COST_NORMS",
    "GRADIENTS",
    "TransportPlan",
    "add_cost",
    "cost_gradient",
    "pairwise_cost",
    "pairwise_top_k_cost",
    "sinkhorn",
]
