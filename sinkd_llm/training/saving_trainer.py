"""What a trainer saves of its student, the card that it writes, and what it sends to a hub."""

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sinkd_llm.environment import describe_device, versions
from sinkd_llm.integrity import ANSWERS_FILE
from sinkd_llm.models.adapter_facts import base_by_name
from sinkd_llm.models.origin import name_of, noted_layers
from sinkd_llm.models.pair_checks import check_not_read
from sinkd_llm.models.partitioning import gathered_weights, is_partitioned
from sinkd_llm.models.placing import saved_files
from sinkd_llm.models.saving import save_student
from sinkd_llm.models.wrappers import unwrap
from sinkd_llm.report.model_card import CARD_FILE, facts_of_files, write_card
from sinkd_llm.report.page import RunFiles
from sinkd_llm.report.results import RESULTS_FILE, ResultRow, RunRecord
from sinkd_llm.secrets import recordable
from sinkd_llm.training.finite import check_sound
from sinkd_llm.training.forward import Forward
from sinkd_llm.training.state_trainer import StateTrainer

# Beside the files of the model. The page of a run and its predictions hold rows of the data, which stay here.
_SENT = (CARD_FILE, RESULTS_FILE, ANSWERS_FILE)
_NO_SCORES = ("runtime", "samples_per_second", "steps_per_second", "model_preparation_time")


class SavingTrainer(StateTrainer):
    """The part of [`SinKDTrainer`] that saves students, writes model cards, and sends both to a hub."""

    forward: Forward
    _read_from: Any
    _last_batch: Mapping[str, Any] | None

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        self._check_sound()
        super()._save_checkpoint(model, trial)

    def _check_sound(self) -> None:
        """Nothing is saved whose weights or outputs are not finite; all processes have to call this."""

        def together(number: Tensor) -> Tensor:
            return torch.as_tensor(self.accelerator.reduce(number, reduction="sum"))

        check_sound(self.model_wrapped, self.forward.kind, self._last_batch, together)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Writes the student so that `output_dir` loads by itself; a checkpoint holds only what training changes."""
        if _internal_call:
            super().save_model(output_dir, _internal_call)
            return
        self.save_whole(output_dir)
        if self.args.push_to_hub:
            self.send("Model save")

    def save_whole(self, output_dir: str | None = None) -> None:
        """
        As [`save_model`], and nothing is sent to a hub.

        Args:
            output_dir (`str`, *optional*): the folder. Default: the run's.
        """
        check_not_read(output_dir or self.args.output_dir or ".", self._read_from)
        self._check_sound()
        student = self.accelerator.unwrap_model(self.model)
        weights = gathered_weights(student, base_by_name(student)) if is_partitioned(student) else None
        if self.args.should_save:
            folder = output_dir or self.args.output_dir or "."
            save_student(student, self.processing_class, folder, state_dict=weights, check=self.args.check_saved)
            self.write_card(Path(folder))
        self.accelerator.wait_for_everyone()  # no process may read the folder before it is whole

    def push_to_hub(self, *args: Any, **kwargs: Any) -> Any:
        """
        Save the student, and send it to the repository `args.hub_model_id`; arguments are those of [`send`]. Files of
        the folder that are not the student's stay here.
        """
        self.save_whole()
        return self.send(*args, **kwargs)

    def send(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
    ) -> Any:
        """
        As [`push_to_hub`], of a student that is saved. All processes must call it.

        Arguments are those of [`~transformers.Trainer.push_to_hub`].
        """
        from huggingface_hub import HfApi

        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        token = token if token is not None else self.args.hub_token
        if self.hub_model_id is None:
            self.init_hf_repo(token=token, private=private)
        if not self.is_world_process_zero():
            return None
        self._finish_current_push()
        folder = Path(self.args.output_dir or ".")
        send: Any = HfApi().upload_folder  # its types tell blocking from not at the call
        return send(
            repo_id=str(self.hub_model_id),
            folder_path=folder,
            commit_message=commit_message,
            token=token,
            run_as_future=not blocking,
            allow_patterns=[*saved_files(folder), *_SENT],
            revision=revision if revision is not None else self.args.hub_revision,
        )

    def write_card(self, folder: Path) -> None:
        """Write a model card of what the trainer itself knows, unless somebody has written one."""
        if (facts := facts_of_files(folder)) is not None:
            write_card(folder, RunFiles(self._record()), facts)

    def _record(self) -> RunRecord:
        args, student = self.args, unwrap(self.model)
        layers, teacher = noted_layers(student), getattr(self, "teacher", None)
        model = teacher.model if teacher is not None else None
        scored = next((logs for logs in reversed(self.state.log_history) if "eval_loss" in logs), {})
        metrics = {name.removeprefix("eval_"): value for name, value in scored.items() if name.startswith("eval_")}
        scores = {name: value for name, value in metrics.items() if name not in _NO_SCORES}
        given = {**args.to_dict(), "model_name_or_path": name_of(student)}
        if model is not None:
            given["teacher_model_name_or_path"] = name_of(unwrap(model))
        objective = args.objective().by_name() if teacher is not None else {}
        return RunRecord(
            command="finetune" if teacher is None else "distill",
            command_line="Python",
            task="rows of the user's own",
            seed=args.seed,
            finished=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            device=describe_device(args.device),
            peak_memory_bytes=0,
            evaluation="the evaluation rows of the trainer",
            training={"steps": self.state.global_step, "resumed_at": int(self.resumed_at), "seconds": 0.0},
            rows=[ResultRow("student", scores)] if scores else [],
            settings=recordable(objective),
            all_settings=recordable(given),
            versions=versions(),
            layers=layers.as_dict() if layers is not None else None,
        )
