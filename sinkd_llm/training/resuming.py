"""A trainer whose checkpoints are whole or not there, and that goes on only from checkpoints of its own run."""

import json
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn
from transformers import Trainer

from sinkd_llm.errors import InputError, first_line
from sinkd_llm.integrity import check_manifest
from sinkd_llm.library_errors import is_memory_full
from sinkd_llm.quiet import without_warning
from sinkd_llm.secrets import masked
from sinkd_llm.terminal import say
from sinkd_llm.training.checkpoint_facts import adapter_facts, differences, run_facts
from sinkd_llm.training.checkpoints import CHECKPOINT, find_checkpoint, saving_checkpoint

if TYPE_CHECKING:
    from sinkd_llm.training.config import SinKDConfig

_ARGUMENTS_FILE = "training_args.bin"


class ResumableTrainer(Trainer):
    """
    `transformers.Trainer` with checkpoints that can be trusted.

    Each has a manifest with the sums of its files and with what its run was: student, adapter, optimizer, rows and
    their order. Training goes on from one whose files are those that were written, and whose run this is.

    Attributes:
        resumed_at (`int`): the step that the last call of [`train`] went on from, 0 for the beginning.
        loss_from_step (`int`): the training loss that it returned is the mean of the steps after this one: 0, unless
            the checkpoint does not say what the steps before it lost.
    """

    args: "SinKDConfig"
    resumed_at = 0
    loss_from_step = 0
    _facts: dict[str, Any] | None = None
    _loss_before = 0.0  # summed over the steps up to `resumed_at`

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """
        As Transformers', from a checkpoint that is whole and of this run.

        Args:
            resume_from_checkpoint (`str` or `bool`, *optional*): a checkpoint's folder, or `True` for the last whole
                one in `args.output_dir`.

        Returns:
            `TrainOutput`: its training loss is the mean over all steps, those before the checkpoint too.

        Raises:
            InputError: for a checkpoint that is damaged, or of another run: each difference by name.
        """
        checkpoint = find_checkpoint(resume_from_checkpoint, str(self.args.output_dir))
        self.resumed_at = self.loss_from_step = 0
        self._loss_before = 0.0
        if checkpoint is not None:
            facts = self.check_checkpoint(checkpoint)
            self.resumed_at = _stored_step(checkpoint)
            before = facts.get("loss_sum")
            if isinstance(before, (int, float)) and not isinstance(before, bool):
                self._loss_before = float(before)
            else:
                self.loss_from_step = self.resumed_at
        else:
            self._facts = run_facts(self)  # type: ignore[arg-type]
        output = super().train(str(checkpoint) if checkpoint is not None else None, *args, **kwargs)
        loss = self._whole_loss(output.training_loss)
        return output._replace(training_loss=loss, metrics={**output.metrics, "train_loss": loss})

    def check_checkpoint(self, checkpoint: Path) -> dict[str, Any]:
        """
        Make sure that this run can go on from a checkpoint; says what is otherwise and may be.

        Args:
            checkpoint (`Path`): a whole one, see [`~sinkd_llm.training.checkpoints.find_checkpoint`].

        Returns:
            `dict`: what its manifest says of its run.

        Raises:
            InputError: naming each difference that may not be.
        """
        stored = check_manifest(checkpoint)
        if self._facts is None:
            self._facts = run_facts(self)  # type: ignore[arg-type]
        facts = stored or _facts_of_files(checkpoint, sharded=self.is_deepspeed_enabled or self.is_fsdp_enabled)
        refused, noted = differences(facts, self._facts)
        if refused:
            raise InputError(
                f"{checkpoint} is of another run: {'; '.join(refused)}. Go on with the settings of that run, or start "
                "at the beginning in another --output_dir."
            )
        if noted and self.is_world_process_zero():
            say(f"Settings that differ from before {checkpoint.name}: {'; '.join(noted)}.")
        return stored

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As Transformers'; the closing record's loss is the mean over all steps."""
        if "train_loss" in logs:
            logs["train_loss"] = self._whole_loss(logs["train_loss"])
        super().log(logs, start_time)

    def _whole_loss(self, loss: float) -> float:
        """The mean over all steps of which the loss is known, of that over the steps since the checkpoint."""
        if not self.resumed_at or self.loss_from_step:
            return loss
        steps = self.state.global_step
        return (self._loss_before + loss * (steps - self.resumed_at)) / max(steps, 1)

    def _loss_sum(self) -> float:
        """Of all steps up to now, as Transformers adds it up for its mean."""
        if self.loss_from_step:
            return float("nan")
        current = float(self._tr_loss.item()) if getattr(self, "_tr_loss", None) is not None else 0.0
        return float(self._loss_before + getattr(self, "_total_loss_scalar", 0.0) + current)

    def _run_epoch(self, model: nn.Module, epoch: int, train_dataloader: Any, *args: Any, **kwargs: Any) -> Any:
        if self.resumed_at and self.state.global_step >= self.state.max_steps:
            # Nothing is left to train. Transformers looks at that only after a step, which would be one too many.
            self.control.should_training_stop = True
            return None
        # Transformers tells the epoch to a loader without the batches that a checkpoint has had, and of several
        # processes that one does not pass it on to the order of the rows.
        if hasattr(train_dataloader, "set_epoch"):
            train_dataloader.set_epoch(epoch)
        return super()._run_epoch(model, epoch, train_dataloader, *args, **kwargs)

    # ---- writing

    def save_checkpoint(self) -> None:
        """A checkpoint of the step that training is at."""
        assert self.model is not None
        self._save_checkpoint(self.model, None)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        folder = Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}"
        loss_sum = self._loss_sum()
        facts = {**(self._facts or {}), **({} if loss_sum != loss_sum else {"loss_sum": loss_sum})}
        with saving_checkpoint(folder, writes_state=self.args.should_save, facts=facts):
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()  # the manifest is of what every process has written

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        # What comes next says that the checkpoint is whole, so every process must have written its part.
        self.accelerator.wait_for_everyone()

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        # A bundled model's name is none of the hub, where PEFT looks whether the vocabulary was changed.
        with self._no_arguments_file(output_dir), without_warning("Could not find a config file in"):
            super()._save(output_dir, state_dict)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        with self._no_arguments_file(str(self.args.output_dir)):
            super()._push_from_checkpoint(checkpoint_folder)

    @contextmanager
    def _no_arguments_file(self, output_dir: str | None) -> Iterator[None]:
        """
        Transformers pickles all arguments, tokens too, into a file that nothing here reads: `results.json` has them.
        What it writes meanwhile has no secrets, and is removed.
        """
        kept = dict(vars(self.args))
        hidden = {name: value for name, value in masked(kept).items() if value is not kept[name] and value == "***"}
        try:
            vars(self.args).update(hidden)
            yield
        finally:
            vars(self.args).update({name: kept[name] for name in hidden})
            if self.args.should_save:
                (Path(output_dir or str(self.args.output_dir)) / _ARGUMENTS_FILE).unlink(missing_ok=True)

    # ---- reading

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        with reading(resume_from_checkpoint, "the student's weights"):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with reading(checkpoint, "the states of optimizer and schedule"):
            super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None or self.is_deepspeed_enabled or self.is_fsdp_enabled:
            return
        optimizer: Any = getattr(self.optimizer, "optimizer", self.optimizer)  # accelerate's wrapper
        lacking = {name for group in optimizer.param_groups for name in optimizer.defaults if name not in group}
        if lacking:
            # torch takes any state, and fails in the first step.
            raise InputError(
                f"the optimizer's state in {checkpoint} is of another kind of optimizer than "
                f"{type(optimizer).__name__}: it has no {sorted(lacking)[0]}; go on with the --optim of the run that "
                "wrote it."
            )

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            name = "rng_state.pth" if self.args.world_size <= 1 else f"rng_state_{self.args.process_index}.pth"
            if not (Path(checkpoint) / name).is_file():
                raise InputError(
                    f"{checkpoint} has no {name}, so the random numbers would differ from the run that wrote "
                    "it; go on with as many processes as it had, or from another checkpoint."
                )
        with reading(checkpoint, "the states of the random numbers"):
            super()._load_rng_state(checkpoint)


@contextmanager
def reading(checkpoint: str | None, what: str) -> Iterator[None]:
    """Around what Transformers, PEFT and torch do with a checkpoint's files: they fail in many ways."""
    try:
        yield
    except (InputError, OSError, MemoryError, pickle.UnpicklingError):
        raise  # they say it well, or mean something else
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError, IndexError, EOFError) as error:
        if is_memory_full(error):
            raise
        raise InputError(
            f"{what} of {checkpoint} do not fit this run, or are damaged ({first_line(error)}); go on with the "
            "settings of the run that wrote it, or from another checkpoint."
        ) from error


def _stored_step(checkpoint: Path) -> int:
    return int(json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))["global_step"])


def _facts_of_files(checkpoint: Path, sharded: bool) -> dict[str, Any]:
    """What a checkpoint without a manifest shows of its run: its adapter."""
    if sharded or not CHECKPOINT.fullmatch(checkpoint.name):
        return {}
    file = checkpoint / "adapter_config.json"
    if not file.is_file():
        return {"adapter": None} if (checkpoint / "config.json").is_file() else {}
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        return {"adapter": adapter_facts(config)}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise InputError(f"{file} is damaged ({error}); go on from another checkpoint.") from error
