"""A teacher that is a model in this process: frozen, in eval mode, without gradient."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sinkd_llm.errors import InputError
from sinkd_llm.models.kinds import SupervisedRows, kind_of, unwrap


class LocalTeacher:
    """
    Gives the teacher's logits at the supervised tokens of a batch.

    Args:
        model (`nn.Module`): the teacher, possibly quantised. Its parameters are frozen in place and it
            is put into eval mode; nothing here switches it back.
    """

    def __init__(self, model: nn.Module) -> None:
        self.kind = kind_of(model)
        self.model = model.requires_grad_(False).eval()

    @torch.no_grad()
    def supervised_rows(self, batch: Mapping[str, Any], with_hidden: bool = False) -> SupervisedRows:
        """
        The same rows, in the same order, as the student's of this batch.

        Args:
            batch (`Mapping`): of the collator of the teacher's family.
            with_hidden (`bool`, *optional*, defaults to `False`): give `hidden_NH` as well, where [`logits`] would
                make the logits of them, and where they are smaller.

        Raises:
            InputError: if a logit is NaN or infinite. The message names the examples
                (`batch["example_id"]`), for the reason is usually a broken checkpoint or a row that
                overflows in half precision.
        """
        with_hidden = with_hidden and self._head is not None
        supervised = self.kind.supervised_rows(self.model, batch, with_hidden)
        finite_N = torch.isfinite(supervised.logits_NV).all(dim=-1)
        if not finite_N.all():
            names = batch.get("example_id")
            broken = supervised.example_N[~finite_N].unique().tolist()
            shown = ", ".join(str(names[i]) if names else f"row {i} of the batch" for i in broken[:5])
            more = f" and {len(broken) - 5} more" if len(broken) > 5 else ""
            raise InputError(
                f"The teacher's logits are NaN or infinite for {shown}{more}. Check the teacher's "
                "weights with `sinkd evaluate`, or load it in float32 or bfloat16 if it runs in float16."
            )
        return supervised

    @torch.no_grad()
    def logits(self, hidden_NH: Tensor) -> Tensor:
        """The head's logits `[N, V]` of hidden states that [`supervised_rows`] gave, on any rank."""
        assert self._head is not None
        logits_NV: Tensor = self._head(hidden_NH)
        return logits_NV

    @property
    def _head(self) -> nn.Module | None:
        """The head, if all of it is here, and if its inputs are smaller than its outputs."""
        head = unwrap(self.model).get_output_embeddings() if not self.kind.scores_classes else None
        weight = getattr(head, "weight", None)
        # Of a head that is sharded over ranks (ZeRO-3, FSDP) the missing shards are larger than any batch of logits.
        if weight is None or hasattr(weight, "ds_id") or hasattr(weight, "device_mesh"):
            return None
        return head if weight.ndim == 2 and weight.shape[1] < weight.shape[0] else None
