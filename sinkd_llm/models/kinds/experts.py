"""Mixtures of experts: the loss that balances them is none of ours."""

import logging
from typing import Any

logger = logging.getLogger(__name__)


def warn_of_router(model: Any) -> None:
    """Warns of a mixture of experts: the loss that balances its experts is left out here (docs/models.md)."""
    if has_router_loss(model.config):
        logger.warning(
            "%s is a mixture of experts, and the load-balancing loss of its router is left out here: train it for a "
            "few epochs at most, or only its attention by LoRA, so that the use of its experts stays as it is.",
            type(model).__name__,
        )


def has_router_loss(config: Any) -> bool:
    """Whether Transformers would add a loss that balances the experts of a mixture of experts."""
    parts = [config, getattr(config, "text_config", None)]
    experts = ("num_local_experts", "num_experts", "n_routed_experts", "num_routed_experts", "moe_num_experts")
    weights = ("router_aux_loss_coef", "aux_loss_alpha", "aux_loss_coef", "moe_aux_loss_coeff")
    return any(
        any(isinstance(n := getattr(part, name, None), int) and n > 1 for name in experts)
        and any(getattr(part, name, None) for name in weights)
        for part in parts
        if part is not None
    )
