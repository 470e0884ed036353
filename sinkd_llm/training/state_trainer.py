"""The part of the trainer that trains what is beside the student: the projection of its hidden states."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sinkd_llm.errors import InputError
from sinkd_llm.training.ordering_trainer import OrderingTrainer
from sinkd_llm.training.projection import StateTerms
from sinkd_llm.training.resuming import reading

# Of a checkpoint: the projection and the queue. Beside the optimizer, which has the moments of the projection.
STATES_FILE = "hidden_states.pt"


class StateTrainer(OrderingTrainer):
    """[`~sinkd_llm.training.ordering_trainer.OrderingTrainer`] with [`StateTerms`], if the loss has them."""

    @property
    def states(self) -> StateTerms | None:
        """What the terms of hidden states need, where there are any."""
        return self.forward.states

    def check_states(self) -> None:
        """
        Puts the projection where the student is, once it is known how the run is spread.

        Raises:
            InputError: for set-ups in which the projection would not be trained, or the examples counted wrongly.
        """
        if self.states is None:
            return
        reason = None
        if self.is_deepspeed_enabled or self.is_fsdp_enabled:
            reason = "the student is trained by DeepSpeed or FSDP, whose optimizers know its weights alone"
        elif self.get_tp_size() * self.get_cp_size() * self.get_sp_size() > 1:
            reason = "processes share one batch (tensor, context or sequence parallelism), where its rows count twice"
        elif self.optimizer is not None or self.lr_scheduler is not None:
            reason = "`optimizers` were given, which do not have the projection of the hidden states"
        elif self.args.torch_compile:
            reason = "torch_compile is on, and a compiled forward does not show its hidden states"
        if reason is not None:
            raise InputError(f"hidden_weight or queue_weight is above 0, but {reason}; set both to 0, or change that.")
        self.states.to(self.args.device)

    def create_optimizer(self, model: Any = None) -> Optimizer:
        """As Transformers', with the projection."""
        is_new = self.optimizer is None
        optimizer: Optimizer = super().create_optimizer(model)
        if is_new and self.states is not None:
            weights = [*self.states.parameters()]
            optimizer.add_param_group({"params": weights, "weight_decay": self.args.weight_decay})
        return optimizer

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor | int | None]:
        """As Transformers', which sets the student's gradient to 0 before an update, and so no more than that."""
        if self.states is not None:
            self.states.zero_grad()
        return super().get_batch_samples(epoch_iterator, num_batches, device)

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """As Transformers'; after the last micro-batch of an update the processes agree on the projection's gradient,
        as they do on the student's. Its norm is no part of what `max_grad_norm` looks at."""
        loss = super().training_step(model, inputs, num_items_in_batch)
        if self.states is not None and self.accelerator.sync_gradients:
            self.states.average_gradients()
        return loss

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.states is not None and self.args.should_save:
            torch.save(self.states.kept(), Path(output_dir) / STATES_FILE)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None and self.states is not None:
            file = Path(checkpoint) / STATES_FILE
            if not file.is_file():
                raise InputError(
                    f"{checkpoint} is of a run without terms of hidden states; go on with hidden_weight 0 and "
                    "queue_weight 0, or start at the beginning in another --output_dir."
                )
            with reading(checkpoint, "the projection and the queue of hidden states"):
                self.states.restore(torch.load(file, map_location="cpu", weights_only=True))
        super()._load_optimizer_and_scheduler(checkpoint)
