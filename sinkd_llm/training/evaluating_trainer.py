"""The part of the trainer that evaluates: rows are ranked or read once, and every number is one of a row.

Nothing here depends on how the rows were batched, in which order they came, or on how many processes there are.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.data import SequentialSampler

from sinkd_llm.distributed import Ranks
from sinkd_llm.errors import InputError
from sinkd_llm.evaluation import refuse_non_finite
from sinkd_llm.inputs.contract import RowTokenizer
from sinkd_llm.inputs.dataset import tokenize_dataset
from sinkd_llm.inputs.pair import features_of_each
from sinkd_llm.models.kinds import Kind
from sinkd_llm.models.kinds.choices import score_choices
from sinkd_llm.models.kinds.over_choices import OverChoices
from sinkd_llm.models.partitioning import is_partitioned, on_device
from sinkd_llm.teachers import Teacher
from sinkd_llm.teachers.choices import why_unknown
from sinkd_llm.training.config import SinKDConfig
from sinkd_llm.training.evaluation import (
    answer_losses,
    gold_losses,
    public_predictions,
)
from sinkd_llm.training.finite import names_of
from sinkd_llm.training.forward import Forward
from sinkd_llm.training.given import check_dataset, check_name
from sinkd_llm.training.resuming import ResumableTrainer

if TYPE_CHECKING:
    from datasets import Dataset
    from torch.utils.data import DataLoader


class EvaluatingTrainer(ResumableTrainer):
    """
    `transformers.Trainer` whose evaluation is this project's; [`SinKDTrainer`] is the one to use.

    Attributes:
        forward ([`Forward`]): the step up to the loss; its `objective` may be set to another one at any time, and
            counts from the next micro-batch. (The settings of the loss in `args` are read once, when it is made.)
    """

    args: SinKDConfig
    forward: Forward
    _answer_tokenizer: RowTokenizer

    @property
    def kind(self) -> Kind:
        """The student's own kind, also where training is over answer choices."""
        kind = self.forward.kind
        return kind.kind if isinstance(kind, OverChoices) else kind

    @property
    def teacher(self) -> Teacher | None:
        """Whose signal the student follows, and whose choices are compared with the student's."""
        return self.forward.teacher

    @property
    def verbalizer_ids(self) -> Tensor | None:
        """The ids that SinKD is restricted to, where `vocabulary` asks for it."""
        return self.forward.verbalizer_ids

    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """
        Scores the student; rows with choices by rank classification.

        Args:
            eval_dataset ([`~datasets.Dataset`] or `dict` or `str`, *optional*): rows to score instead of the ones
                given at construction, or the name of one of several that were.

        Returns:
            `dict[str, float]`: `eval_loss` (cross-entropy of the gold answers per token, over all rows together; of a
            regression head the mean squared error), the task's metrics, and `eval_agreement`, the share of rows where
            student and teacher choose the same answer, if the teacher's choice is known for every row: a model
            chooses, and a cache knows the rows on which its teacher was scored.

        Raises:
            InputError: if there are no rows to score, or they are none.
            NonFiniteError: if the student's numbers are NaN or infinite.
        """
        # Trainer itself passes the name of one of several evaluation sets.
        known = self.eval_dataset if isinstance(self.eval_dataset, dict) else {}
        if isinstance(eval_dataset, str):
            check_name(eval_dataset, known)
        elif eval_dataset is not None:
            check_dataset(eval_dataset, "eval_dataset", needed=True)
            eval_dataset = self._ranked(eval_dataset)
        else:
            check_dataset(self.eval_dataset, "eval_dataset", needed=True)
            self.eval_dataset = self._ranked(self.eval_dataset)  # it may have been set to other rows since
        return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)

    def predict(self, test_dataset: Any, ignore_keys: list[str] | None = None, metric_key_prefix: str = "test") -> Any:
        """
        As [`evaluate`], with the numbers of each row.

        Args:
            test_dataset ([`~datasets.Dataset`]): rows as at construction.

        Returns:
            [`~transformers.trainer_utils.PredictionOutput`]: of rows with choices, `predictions` are their
            log-probabilities `[n, C]`, the teacher's choices `[n]` (-1 where they are not known) and, of a regression
            head, its predictions `[n]`; `label_ids` the gold choices. Of rows without choices, only metrics.
        """
        check_dataset(test_dataset, "test_dataset", needed=True, named=False)
        return super().predict(self._ranked(test_dataset), ignore_keys, metric_key_prefix)

    def _ranked(self, dataset: Any) -> Any:
        """The rows with all their choices tokenised; those that are already stay as they are."""
        if isinstance(dataset, Mapping):
            return {name: self._ranked(part) for name, part in dataset.items()}
        return tokenize_dataset(dataset, self._answer_tokenizer, ranking=True)

    def evaluation_features(self) -> "list[tuple[RowTokenizer, Dataset]]":
        """The tokenised rows of the one `eval_dataset`: as the student reads them and as its teacher does."""
        return features_of_each(self._answer_tokenizer, self.eval_dataset)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> "DataLoader[Any]":
        """As Transformers', but with all rows: `dataloader_drop_last` is about training."""
        with self._no_row_dropped():
            return super().get_eval_dataloader(eval_dataset)

    def get_test_dataloader(self, test_dataset: Any) -> "DataLoader[Any]":
        """As [`get_eval_dataloader`]."""
        with self._no_row_dropped():
            return super().get_test_dataloader(test_dataset)

    def _get_eval_sampler(self, eval_dataset: Any) -> SequentialSampler:
        """All rows in their order, which is the order of the predictions, whatever order training takes."""
        return SequentialSampler(eval_dataset)

    @contextmanager
    def _no_row_dropped(self) -> Iterator[None]:
        given, self.args.dataloader_drop_last = self.args.dataloader_drop_last, False
        try:
            yield
        finally:
            self.args.dataloader_drop_last = given

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """
        As Transformers', also before training.

        There it would prepare the student as one that never trains: DeepSpeed's engine would have no optimizer, and
        under DDP the gradients of the processes would stay apart, without a word.
        """
        output = self._evaluation_loop(*args, **kwargs)
        shown = public_predictions(output.predictions)
        return output._replace(predictions=shown, label_ids=None if shown is None else output.label_ids)

    def _evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        prepared = self.is_in_train or self.model_wrapped is not self.model or is_partitioned(self.model)
        if prepared or self.args.world_size == 1:
            return super().evaluation_loop(*args, **kwargs)
        flags = self.is_deepspeed_enabled, self.is_fsdp_enabled
        self.is_deepspeed_enabled = self.is_fsdp_enabled = False
        try:
            with on_device(self.model, self.args.device):
                return super().evaluation_loop(*args, **kwargs)
        finally:
            self.is_deepspeed_enabled, self.is_fsdp_enabled = flags
            # Accelerate must not take the student for one that is prepared to train.
            self.accelerator._models.clear()
            self.model._is_accelerate_prepared = False  # type: ignore[union-attr]

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor | None, Any, Tensor | None]:
        """Numbers of each row, and something for Transformers to call gold; no loss, which is over all rows.

        Of rows with choices: log-probabilities of the choices `[B, C]`, the teacher's choice `[B]`, loss and tokens of
        the gold answer `[B]`, and a regression head's predictions `[B]`. Of others: loss and tokens `[B]`.
        """
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            if "trees" not in inputs:
                losses = answer_losses(self.kind.supervised_rows(model, inputs), names_of(inputs))
                return None, losses, losses[1]
            scores = score_choices(self.kind, model, inputs, ranks=Ranks.of())
        scores_BC = scores.log_likelihood_BC
        present_BC = scores.length_BC > 0
        refuse_non_finite(scores_BC.where(present_BC, 0).tolist(), names_of(inputs), "log-likelihood of an answer")
        # Batches with fewer choices are padded with -100 when they are put together, which no
        # log-probability of a *best* choice can be, while a sum over tokens could.
        predictions = (
            scores_BC.log_softmax(dim=-1),
            self._teacher_choice(inputs),
            *gold_losses(scores, inputs["label"]),
        )
        return None, predictions if scores.number_B is None else (*predictions, scores.number_B), inputs["label"]

    def _teacher_choice(self, inputs: Mapping[str, Any]) -> Tensor:
        """Index of the choice that the teacher ranks first, `[B]`; -1 where that is not known."""
        return self.teacher.choices(inputs) if self.teacher is not None else torch.full_like(inputs["label"], -1)

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        wanted = self.args.metric_for_best_model
        name = wanted if wanted is None or wanted.startswith("eval_") else f"eval_{wanted}"
        if name is not None and name not in metrics:
            timing = ("_runtime", "_per_second", "_time")
            known = [key for key in metrics if key.startswith("eval_") and not key.endswith(timing)]
            problem = f"an evaluation reports {', '.join(known)}; give one of them."
            if name == "eval_agreement" and self.teacher is not None and self.teacher.model is None:
                problem += f" {why_unknown(self.teacher.recorded_score)}"
            raise InputError(f"metric_for_best_model is {wanted!r}, but {problem}")
        return bool(super()._determine_best_metric(metrics, trial))
