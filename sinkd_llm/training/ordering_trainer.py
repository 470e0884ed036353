"""The part of the trainer that decides which rows a step gets, and in which order."""

import logging
from typing import TYPE_CHECKING, Any

from sinkd_llm.errors import InputError, SettingError
from sinkd_llm.inputs.dataset import plain_rows, tokenize_dataset
from sinkd_llm.inputs.decoder_only import PackingCollator
from sinkd_llm.models.kinds.class_heads import is_new_head
from sinkd_llm.models.pair_checks import check_trains
from sinkd_llm.models.wrappers import unwrap
from sinkd_llm.objectives import GROUP
from sinkd_llm.teachers.contract import GROUP_NUMBER
from sinkd_llm.training.blank_rows import BlankingCollator, RowsAndBlanks, check_not_empty, spread_without_repeats
from sinkd_llm.training.evaluating_trainer import EvaluatingTrainer
from sinkd_llm.training.given import check_dataset
from sinkd_llm.training.grouped_rows import group_values, whole_groups, with_group_numbers, with_teacher_groups
from sinkd_llm.training.labelled_mix import mixed_rows
from sinkd_llm.training.labels_beside_groups import groups_and_labels, room_for_groups
from sinkd_llm.training.row_order import LikeLengths, row_lengths

if TYPE_CHECKING:
    from datasets import Dataset
    from torch.utils.data import DataLoader, Sampler

logger = logging.getLogger(__name__)


class OrderingTrainer(EvaluatingTrainer):
    """
    `transformers.Trainer` whose rows come in an order of seed and epoch alone; [`SinKDTrainer`] is the one to use.

    The order is the same on all processes and in a run that goes on from a checkpoint, and no row comes twice in an
    epoch but where `unlabelled_ratio` asks for that.
    """

    def _training_features(self, dataset: "Dataset | None") -> "Dataset | None":
        """The tokenised training rows, with the numbers of their groups where these are kept together."""
        if dataset is None:
            return None
        features: Dataset = self._tokenized(dataset, ranking=False)
        if self.teacher is None or self.args.transport_scope != GROUP:  # groups are the teacher's
            return features
        column, batch = self.args.group_column, room_for_groups(self.args)
        if self.args.unlabelled_ratio is not None and self.teacher.model is not None:
            raise SettingError(
                "unlabelled_ratio",
                "shows labelled rows beside whole groups, out of their groups and without the teacher, and a teacher "
                "that is a model here knows the row of each text: nothing is known per group. Leave group_column and "
                "transport_scope out, or cache the teacher.",
            )
        if (theirs := self.teacher.groups_of(features)) is not None:
            values = None if column is None else group_values(dataset, column)
            return with_teacher_groups(features, theirs, batch, values)
        if column is None:
            raise SettingError(
                "transport_scope",
                "is group, and neither does the teacher know its rows per group nor does group_column say of which "
                "group a row is; set group_column to a column of the training rows.",
            )
        if paired := self.forward.objective.terms_of_pairs:
            logger.warning(
                "%s takes the teacher's row of each row for its own, also within a group of group_column %r. Where "
                "the teacher's rows of a group are in any order, that teaches wrong pairs: set divergence to none and "
                "transported_anchor to 1.",
                " and ".join(paired),
                column,
            )
        return with_group_numbers(features, dataset, column, batch)

    def _tokenized(self, dataset: Any, ranking: bool) -> Any:
        if dataset is None:
            return None
        if isinstance(dataset, dict):
            return {name: self._tokenized(part, ranking) for name, part in dataset.items()}
        with self.args.main_process_first(desc="tokenising"):
            return tokenize_dataset(
                dataset, self._answer_tokenizer, ranking=ranking, num_proc=self.args.dataset_num_proc
            )

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As Transformers', also on rows that `train_dataset` was set to since the trainer was made."""
        self._read_rows()
        return super().train(*args, **kwargs)

    def _read_rows(self) -> None:
        rows: Any = self.train_dataset
        check_dataset(rows, "train_dataset", named=False)
        if rows is None or "prompt_ids" in rows.column_names:
            return
        self.train_dataset = self._training_features(plain_rows(rows, "train_dataset"))
        if self.teacher is not None:
            self.teacher.check_rows(self.train_dataset)

    def get_train_dataloader(self) -> "DataLoader[Any]":
        """
        As Transformers', but no row comes twice in an epoch where several processes train, and groups stay whole: what
        is missing in a batch is blank, see `blank_rows.py`.
        """
        if self.train_dataset is None:
            raise InputError("There is nothing to train on: give train_dataset to the trainer.")
        check_trains(self.model)
        self._read_rows()
        rows: Any = self.train_dataset
        in_groups = GROUP_NUMBER in rows.column_names
        if in_groups and not self.forward.objective.terms_of_pairs and is_new_head(unwrap(self.model)):
            logger.warning(
                "The student has a new head, which knows no class, and nothing says whose the teacher's rows of a "
                "group are: a plan of such a student gives classes each other's rows, and it may learn little. "
                "Fine-tune it on the labelled rows first (sinkd finetune, with labels_per_class or without) and give "
                "the folder as model_name_or_path."
            )
        collator: Any = self.data_collator
        reads = PackingCollator(collator) if self.args.packing else collator
        processes = self.args.world_size
        # Transformers makes the loader of these two attributes.
        self.train_dataset, self.data_collator = rows, reads
        if processes > 1 or in_groups:
            self.train_dataset, self.data_collator = RowsAndBlanks(rows), BlankingCollator(reads)
        try:
            loader = super().get_train_dataloader()
        finally:
            self.train_dataset, self.data_collator = rows, collator
        if processes > 1:
            loader = spread_without_repeats(loader, rows)
        check_not_empty(loader, len(rows), self.args.per_device_train_batch_size, processes)
        return loader

    def _get_train_sampler(self, train_dataset: Any = None) -> "Sampler[int] | None":
        """As Transformers', but whole groups, a share of rows without a label a batch, or rows of like length."""
        rows = train_dataset.rows if isinstance(train_dataset, RowsAndBlanks) else train_dataset
        if GROUP_NUMBER in rows.column_names:
            if self.args.unlabelled_ratio is not None:
                return groups_and_labels(rows, self.args)
            return whole_groups(rows, self.args.per_device_train_batch_size, self.args.sample_seed)
        if self.args.unlabelled_ratio is not None:
            return mixed_rows(rows, self.args, self.kind.continues_prompt)
        if self.args.train_sampling_strategy != "group_by_length":
            return super()._get_train_sampler(train_dataset)
        update = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        return LikeLengths(row_lengths(rows, self.kind.continues_prompt), update, self.args.sample_seed)
