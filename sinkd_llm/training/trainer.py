"""`SinKDTrainer`: `transformers.Trainer` that distils a teacher by cross-entropy, divergence and SinKD."""

import logging
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import EvalPrediction, PreTrainedModel

from sinkd_llm.distributed import Ranks
from sinkd_llm.errors import InputError
from sinkd_llm.evaluation import accuracy
from sinkd_llm.inputs.answer_choices import class_names
from sinkd_llm.inputs.dataset import plain_rows
from sinkd_llm.inputs.pair import PairTokenizer
from sinkd_llm.models.kinds import IGNORE_INDEX
from sinkd_llm.models.kinds.over_choices import OverChoices
from sinkd_llm.models.origin import name_of
from sinkd_llm.models.pair_checks import check_not_read, check_scale, folders_read
from sinkd_llm.models.partitioning import on_device
from sinkd_llm.models.probes import check_packing
from sinkd_llm.models.saving import check_saveable
from sinkd_llm.objectives import GROUP, DistillationObjective
from sinkd_llm.training.checkpoints import last_whole
from sinkd_llm.training.config import SinKDConfig
from sinkd_llm.training.evaluation import EvaluationMetrics
from sinkd_llm.training.finite import FiniteGate, names_of
from sinkd_llm.training.forward import Forward
from sinkd_llm.training.given import (
    check_arguments,
    check_collator,
    check_optimizers,
    check_tokenizer,
    named_or_loaded,
)
from sinkd_llm.training.grouped_rows import GroupCollator
from sinkd_llm.training.last_plan import LastPlan
from sinkd_llm.training.pair import load_pair
from sinkd_llm.training.prepare import enable_checkpointing, prepare
from sinkd_llm.training.processes import check_fsdp
from sinkd_llm.training.saving_trainer import SavingTrainer
from sinkd_llm.training.settings.distillation import check_proportions
from sinkd_llm.training.streams import stored_streams
from sinkd_llm.training.term_log import TermLog
from sinkd_llm.training.transport_cost import SayTransportCost
from sinkd_llm.training.window import Window

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset
    from peft import PeftConfig, PeftModel
    from transformers import (
        BitsAndBytesConfig,
        DataCollator,
        PreTrainedTokenizerBase,
        TrainerCallback,
    )

logger = logging.getLogger(__name__)


class SinKDTrainer(SavingTrainer):
    """
    Trainer for Sinkhorn knowledge distillation ([SinKD](https://huggingface.co/papers/2402.17110)).

    Without a teacher it fine-tunes with cross-entropy on the answers, for example to make a teacher.

    Example:

    ```python
    from sinkd_llm import SinKDConfig, SinKDTrainer, load_task

    task = load_task("quickstart")
    trainer = SinKDTrainer(
        model="smollm2-135m",
        args=SinKDConfig(output_dir="teacher", max_steps=10),
        train_dataset=task.load("train"),
        eval_dataset=task.load("validation"),
    )
    trainer.train()
    ```

    Args:
        model (`str` or `Path` or [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`], *optional*):
            The student: a name for [`load_model`] or a model. `None` with `args.student_layers` builds it
            from the teacher's own layers.
        teacher_model (`str` or `Path` or [`~transformers.PreTrainedModel`], *optional*):
            The teacher, a name or a model; or see `args.teacher_model_name_or_path`. It is frozen in place.
            With `args.teacher_cache` none is needed.
        args ([`SinKDConfig`], *optional*):
            The settings. Default: `SinKDConfig` with the output folder `<model>-SinKD`.
        data_collator ([`~transformers.DataCollator`], *optional*):
            Default: the collator of the student's kind, see [`row_collator`].
        train_dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`], *optional*):
            Rows of a task (`load_task(name).load("train")`) or TRL's prompt-completion rows, plain or
            conversational. A stream's rows are written to `<output_dir>/streams` first, see [`stored_streams`].
        eval_dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`] or `dict` of these, *optional*):
            Likewise. Rows with choices are scored by rank classification; others by the training loss.
        processing_class ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            The tokenizer of both models. Default: the one that belongs to `model`, else to the teacher.
        compute_metrics (`Callable[[EvalPrediction], dict]`, *optional*):
            Gets the log-probabilities of the choices `[n, C]` as `predictions` and the gold indices as
            `label_ids`; [`ranking_metrics`] makes one from a task. Where a regression head is trained, `predictions`
            are these and its predictions `[n]`, in [0, 1]. Default: accuracy. Rows without choices have a loss alone.
        callbacks (`list` of [`~transformers.TrainerCallback`], *optional*):
            Added to the callbacks of `transformers.Trainer`.
        optimizers (`tuple`, *optional*, defaults to `(None, None)`):
            Optimizer and scheduler.
        quantization_config ([`~transformers.BitsAndBytesConfig`], *optional*):
            Quantises the student while it is loaded; needs `model` to be a string.
        peft_config ([`~peft.PeftConfig`], *optional*):
            Wraps the student in an adapter.
        teacher_processing_class ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            The teacher's tokenizer where it is another one, which takes `signal` over choices. Default: the one that
            belongs to the teacher, by its name or folder, else `processing_class`.

    Raises:
        InputError: for combinations that would train the wrong thing; each says what to do instead.
    """

    # Every term is divided by the supervised tokens of the accumulation window, not by micro-batches.
    loss_is_scaled_for_ga = True

    args: SinKDConfig

    def __init__(
        self,
        model: "str | Path | PreTrainedModel | PeftModel | None" = None,
        teacher_model: str | Path | PreTrainedModel | None = None,
        args: SinKDConfig | None = None,
        data_collator: "DataCollator | None" = None,
        train_dataset: "Dataset | IterableDataset | None" = None,
        eval_dataset: "Dataset | IterableDataset | dict[str, Any] | None" = None,
        processing_class: "PreTrainedTokenizerBase | None" = None,
        compute_metrics: Callable[[EvalPrediction], dict[str, float]] | None = None,
        callbacks: "list[TrainerCallback] | None" = None,
        optimizers: tuple[Any, Any] = (None, None),
        quantization_config: "BitsAndBytesConfig | None" = None,
        peft_config: "PeftConfig | None" = None,
        teacher_processing_class: "PreTrainedTokenizerBase | None" = None,
    ) -> None:
        model, teacher_model = named_or_loaded(model, "model"), named_or_loaded(teacher_model, "teacher_model")
        check_tokenizer(processing_class)
        check_tokenizer(teacher_processing_class, "teacher_processing_class")
        if args is None:
            source = model if model is not None else teacher_model
            name = source if isinstance(source, str) else name_of(source) or "model"
            args = SinKDConfig(f"{str(name).rstrip('/').split('/')[-1]}-SinKD")
        check_arguments(args, train_dataset, eval_dataset, compute_metrics, data_collator, callbacks)
        train_dataset, eval_dataset = stored_streams(args, train_dataset, eval_dataset)
        train_dataset = plain_rows(train_dataset, "train_dataset")
        eval_dataset = plain_rows(eval_dataset, "eval_dataset")
        classes = class_names(train_dataset)
        tokenizers = processing_class, teacher_processing_class
        pair = load_pair(model, teacher_model, args, tokenizers, quantization_config, classes, train_dataset)
        self._read_from = folders_read(
            *(model, teacher_model, args.teacher_model_name_or_path, args.teacher_cache, pair.student),
            pair.teacher.model if pair.teacher is not None else None,
        )
        if args.output_dir is not None:
            check_not_read(args.output_dir, self._read_from)
        stage = args.deepspeed_plugin.zero_stage if args.deepspeed_plugin is not None else None
        prepared = prepare(pair, args, peft_config, train_dataset, stage)
        student = prepared.student
        check_saveable(student, will_be_spread=stage == 3 or bool(args.fsdp))
        check_optimizers(optimizers, student)
        enable_checkpointing(student, args, stage)
        self.forward = Forward(
            *(prepared.kind, prepared.teacher, args.objective(), prepared.verbalizer_ids),
            head=prepared.head,
            states=prepared.states,
        )
        self._answer_tokenizer = prepared.rows.tokenize
        self.args = args  # Trainer's own constructor sets it, and rows are tokenised before that
        self._objective_asked: DistillationObjective | None = self.forward.objective
        self._term_log = TermLog()
        self.last_plan: LastPlan | None = None
        self._last_batch: Mapping[str, Any] | None = None
        collator: Any = data_collator or prepared.rows.collate
        super().__init__(
            model=student,
            args=args,
            data_collator=GroupCollator(collator) if args.transport_scope == GROUP else collator,
            train_dataset=self._training_features(train_dataset),
            eval_dataset=self._tokenized(eval_dataset, ranking=True),
            processing_class=prepared.tokenizer,
            compute_metrics=EvaluationMetrics(compute_metrics or accuracy),
            callbacks=list(callbacks or ()),
            optimizers=optimizers,
        )
        if data_collator is not None:
            check_collator(self.data_collator, self.train_dataset)
        check_fsdp(getattr(self.accelerator.state, "fsdp_plugin", None), student)
        self.check_states()
        self._gate = FiniteGate(scaled=args.fp16 or self.accelerator.scaler is not None)
        # Trainer counts the supervised tokens of the accumulation window only for models that take the
        # count; here the objective takes it.
        self.model_accepts_loss_kwargs = True
        if self.verbalizer_ids is not None:
            self.forward.verbalizer_ids = self.verbalizer_ids.to(args.device)
        if self.teacher is not None:
            if self.train_dataset is not None:
                self.teacher.check_rows(self.train_dataset)
            self.teacher.place(self.accelerator, args.teacher_deepspeed)
        self.forward.ranks = self._ranks()
        self._window: Window | None = None
        self._num_taught: Tensor | None = None
        self._num_examples: Tensor | None = None
        if args.packing:
            self._check_packing()
        self._check_teacher_scale()
        self.add_callback(SayTransportCost(self))

    def _ranks(self) -> Ranks | None:
        """The ranks that share a transport problem."""
        ranks = Ranks.of() if self.args.transport_across_devices else None
        if ranks and self.forward.objective.spans:
            check_proportions(self.args, "transport_across_devices")
        if ranks and self.forward.objective.spans and self.get_tp_size() * self.get_cp_size() * self.get_sp_size() > 1:
            raise InputError(
                "Some ranks share one batch (tensor, context or sequence parallelism), and a transport problem over "
                "all ranks would count its rows several times; set transport_across_devices to false."
            )
        return ranks

    def _check_teacher_scale(self) -> None:
        """A regression teacher's predictions for the first rows lie on the scale that is learnt here."""
        rows: Any = self.train_dataset
        if self.teacher is None or not rows or not self.teacher.scores_classes or self.teacher.outputs != 1:
            return
        batch = self._prepare_inputs(self.data_collator([rows[i] for i in range(min(32, len(rows)))]))
        signal = self.teacher.signal(batch).signal
        assert isinstance(signal, Tensor)  # classes and predictions are kept whole
        check_scale(signal)

    def _check_packing(self) -> None:
        """Student and teacher, as they are placed and wrapped now, keep the rows of a packed batch apart."""
        if self.get_cp_size() * self.get_sp_size() > 1:
            raise InputError(
                "packing is on, and ranks share one sequence (context or sequence parallelism), whose attention does "
                "not look at where rows begin; leave packing out, or set these sizes to 1."
            )
        precision = torch.bfloat16 if self.args.bf16 else torch.float16 if self.args.fp16 else torch.float32
        same_batch = not isinstance(self._answer_tokenizer, PairTokenizer)
        with self.compute_loss_context_manager():
            with on_device(self.model, self.args.device):
                check_packing(self.model, "the student", precision)
            if self.teacher is not None and self.teacher.model is not None and same_batch:
                check_packing(self.teacher.model, "the teacher", precision)

    # ---- training

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor | int | None]:
        """The micro-batches of the next accumulation window, and how many supervised tokens they have."""
        batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        self.open_window(batches)
        return batches, num_items

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Tensor | int | None:
        """As Transformers', but over answer choices rows with a label, and beside them rows with a teacher's; with
        hidden states, beside the tokens, rows."""
        over_choices = isinstance(self.forward.kind, OverChoices)
        if over_choices or self.states is not None:
            assert self.teacher is not None
            labelled = sum(int((batch["labels"] != IGNORE_INDEX).sum()) for batch in batch_samples)
            taught = sum(self.teacher.count(batch) for batch in batch_samples)
            counts = torch.tensor([[labelled, taught]], device=device)
            if self.args.average_tokens_across_devices and self.args.world_size > 1:
                counts = torch.as_tensor(self.accelerator.gather(counts)).sum(dim=0, keepdim=True)
            num_items, num_rows = counts[0].unbind()
            if over_choices:
                self._num_taught = num_rows
                return num_items
            self._num_examples = num_rows
        return super()._get_num_items_in_batch(batch_samples, device)

    def open_window(self, batches: list[Any]) -> None:
        """Announces the micro-batches that `compute_loss` will be asked for, if they are one transport problem."""
        if self._objective_asked is not None and self.args.objective() != self._objective_asked:
            logger.warning(
                "A setting of the loss has been changed in args since the trainer was made, which has no effect: put "
                "another objective in its place, trainer.forward.objective = dataclasses.replace("
                "trainer.forward.objective, alpha=…)."
            )
            self._objective_asked = None  # said once
        joined = self.args.transport_accumulation and len(batches) > 1
        self._window = Window(self.forward, [self._prepare_inputs(batch) for batch in batches]) if joined else None

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Mapping[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The objective on the supervised tokens of a micro-batch.

        Every call in training adds its terms to the next record of the log, before whatever a subclass makes of the
        loss: one that calls it twice a micro-batch logs the sum of both.

        Args:
            num_items_in_batch (`Tensor` or `int`, *optional*): supervised tokens of the accumulation window,
                over all processes (of this one, without `average_tokens_across_devices`).
        """
        averaged = self.args.average_tokens_across_devices and num_items_in_batch is not None
        self.forward.group_seed = self.args.group_seed(self.state.global_step)
        taught = None if num_items_in_batch is None else self._num_taught
        output = self.forward(
            model,
            inputs,
            num_items=num_items_in_batch,
            own_items=None if averaged else num_items_in_batch if taught is None else taught,
            num_taught=taught,
            num_examples=None if num_items_in_batch is None else self._num_examples,
            window=self._window,
            with_diagnostics=model.training and self._is_looked_at(),
        )
        if self._window is not None and self._window.is_done:
            self._window = None
        # The count is over all processes, and their gradients are averaged, not summed.
        scale = self.accelerator.num_processes if averaged else 1
        if model.training:
            check = partial(self.teacher.check_finite, inputs) if self.teacher is not None else None
            self._gate.add({**output.terms, "loss": output.loss}, names_of(inputs), check)
            self._last_batch = inputs
            if output.plans:
                self.last_plan = LastPlan(output.plans, names_of(inputs), self.state.global_step + 1)
            self._term_log.add(output, scale, self.state.global_step)
        loss = output.loss * scale if averaged else output.loss
        return (loss, {}) if return_outputs else loss

    def _is_looked_at(self) -> bool:
        """Diagnostics cost a little, so they are computed only where the logger shows them, and in the last step."""
        step = self.state.global_step + 1
        return step % max(1, int(self.state.logging_steps or 10)) == 0 or step == self.state.max_steps

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """The gradient's norm, looked at together with the terms of the update: the last moment to stop it."""
        norm = super()._get_grad_norm(model, grad_norm)
        self._gate.look(self.state.global_step + 1, norm, model, self._way_on)
        return norm

    def _way_on(self) -> str:
        whole = last_whole(self.args.output_dir or ".")
        return f"{whole.name} is whole: go on from it." if whole else "No checkpoint was written before."

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the terms, whose weighted sum is the loss, and the means of the diagnostics since the last record."""
        if "loss" in logs and (values := self._term_log.take()):
            means = torch.stack([value.float() for value in values.values()]).to(self.args.device)
            means = self.accelerator.reduce(means, reduction="mean")
            logs.update(zip(values, means.tolist(), strict=True))
        super().log(logs, start_time)
