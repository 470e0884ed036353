"""`SinKDConfig`: `transformers.TrainingArguments` plus what distillation needs."""

import copy
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any

import torch
from transformers import TrainingArguments

from sinkd_llm.errors import plain
from sinkd_llm.inputs.reading import Reading
from sinkd_llm.library_errors import naming_settings
from sinkd_llm.models.kinds import KINDS
from sinkd_llm.models.kinds.over_choices import CHOICE_NORMALISATIONS
from sinkd_llm.objectives import (
    DIVERGENCE_CHOICES,
    FUSED,
    TRANSPORT_SCOPES,
    VOCABULARIES,
    DistillationObjective,
    StateSettings,
    TransportedSettings,
    TransportSettings,
)
from sinkd_llm.optimal_transport import COST_NORMS, GRADIENTS
from sinkd_llm.secrets import is_secret_name
from sinkd_llm.teachers.placement import PLACEMENTS
from sinkd_llm.teachers.served.server import WAYS
from sinkd_llm.training.processes import check_launch, start_cpu_group, use_cpus_if_alone
from sinkd_llm.training.settings.checks import check_settings
from sinkd_llm.training.settings.combinations import check_optimizer, check_revision, check_together
from sinkd_llm.training.settings.distillation import check_distillation
from sinkd_llm.training.settings.layers import layers_as_text
from sinkd_llm.training.settings.optional_terms import OptionalTermArguments
from sinkd_llm.training.settings.texts import described

# Over what student and teacher are compared.
SIGNALS = ("auto", "tokens", "choices")


@described
@dataclass
class SinKDConfig(OptionalTermArguments, TrainingArguments):
    r"""
    Configuration class for the [`SinKDTrainer`].

    This class includes only the parameters that are specific to SinKD, and at the end those of
    [`~transformers.TrainingArguments`] whose default differs here. For the others see its documentation, and for the
    terms that are off by default [`~sinkd_llm.training.settings.optional_terms.OptionalTermArguments`].

    The loss is `(1 - alpha) * CE + alpha * divergence + sinkhorn_weight * SinKD + transported_weight * transported
    cross-entropy`, every term a mean over supervised tokens, `+ hidden_weight * cosine distance + queue_weight * queue
    cross-entropy`, means over examples.

    Parameters:
        > Parameters that control the models

        model_init_kwargs (`dict[str, Any] | str`, *optional*):
            Keyword arguments for [`load_model`] when the student is given as a string.
        student_layers (`int`, *optional*):
            Layers of a student that is cut from `model_name_or_path` (in Python, `model`), else from the teacher.
        student_decoder_layers (`int`, *optional*):
            Decoder layers of an encoder-decoder student, which has `student_layers` encoder layers. Default: as many.
        layer_selection (`str`, *optional*, defaults to `"even"`):
            Which layers: evenly spaced, those that change most what they read (`"influence"`), those left when the
            least needed for answers are dropped (`"greedy"`), or indices: `"0,2,5"`, with a decoder's `"0,2; 0,3"`.
        layer_selection_rows (`int`, *optional*, defaults to `64`):
            How many training rows `"influence"` and `"greedy"` look at.
        check_saved (`bool`, *optional*, defaults to `True`):
            Load the saved student and compare its outputs with the outputs of the trained one.
        model_kind (`str`, *optional*):
            Load the student as a model of this kind. Default: what its checkpoint is; an encoder gets a
            classification head for the task, unless the teacher scores words.
        trust_remote_code (`bool`, *optional*, defaults to `False`):
            Run modelling code that comes with a model from the hub.
        teacher_model_name_or_path (`str`, *optional*):
            The teacher: a hub id, a folder, a `*.gguf` file or a bundled name. Without a teacher the student is
            fine-tuned with cross-entropy.
        teacher_model_revision (`str`, *optional*, defaults to `"main"`):
            Revision of the teacher on the hub.
        teacher_model_init_kwargs (`dict[str, Any] | str`, *optional*):
            Keyword arguments for [`load_model`] when the teacher is given as a string.
        teacher_load_in_4bit (`bool`, *optional*, defaults to `False`):
            Load the teacher in 4-bit NF4 (bitsandbytes).
        teacher_load_in_8bit (`bool`, *optional*, defaults to `False`):
            Load the teacher in 8 bit (bitsandbytes).
        signal (`str`, *optional*, defaults to `"auto"`):
            Over what student and teacher are compared: the tokens (or classes) of both (`"tokens"`), which takes one
            tokenizer and one sort of head, or the answer choices of a row (`"choices"`), over which any teacher can
            teach any student, also from rows without a label. `"auto"`: tokens, where the pair and the rows allow it.
        choice_normalisation (`str`, *optional*, defaults to `"sum"`):
            The score of a choice of several tokens: its log-likelihood (`"sum"`), or the mean over its tokens
            (`"token"`). With `signal` over choices.
        teacher_file (`str`, *optional*):
            A teacher that is a file: for a row's place in the training file (`row`, from 0), its text (`text`), its
            `id` as this project gives it, or its group (`group_column`) an answer, a probability for each choice, or
            for a group counts, as `.csv`, `.tsv`, `.jsonl`, `.json` or `.parquet`.
        teacher_url (`str`, *optional*):
            A teacher on a server with an OpenAI-style API, such as `http://127.0.0.1:8000/v1`. Its key comes from the
            environment variable `SINKD_TEACHER_API_KEY` or `OPENAI_API_KEY`. All rows are asked before training, once.
        teacher_model (`str`, *optional*):
            What the server calls the model. Default: the only one that it lists.
        teacher_samples (`int`, *optional*, defaults to `0`):
            Where the server only answers: so many answers a row at temperature 1, whose frequencies are the signal.
            `0`: one answer at temperature 0.
        teacher_rows_per_request (`int`, *optional*, defaults to `1`):
            So many rows a request, as a list, which a list answers. They are a group of `transport_scope`: paired
            (`transported_anchor` about `0.3`) where each has an answer, else a set.
        teacher_max_requests (`int`, *optional*):
            The most requests to the server in a call, those that find out how it answers included.
        teacher_concurrency (`int`, *optional*, defaults to `8`):
            The most requests at the same time.
        teacher_way (`str`, *optional*, defaults to `"auto"`):
            How the server is asked: for log-probabilities of the choices (`"scores"`), for the likeliest first tokens
            (`"top_logprobs"`), or for answers (`"answers"`); `"auto"`: the first of these that works.
        teacher_cache (`str`, *optional*):
            Folder that `sinkd cache` wrote, in place of a teacher; one is loaded where the student is cut from it.
        cache_tolerance (`float`, *optional*, defaults to `0.05`):
            Warn before training if a top-k cache knows the mean transport cost (0 to 2) of a pair less well than this.
        teacher_deepspeed (`str`, *optional*, defaults to `"auto"`):
            Where the teacher's weights lie in several processes: `"replicate"` (whole in each), `"shard"` (spread over
            their devices: ZeRO-3 or FSDP), `"offload"` (over their CPU memories, ZeRO-3) or `"auto"` (as the student).
        disable_dropout (`bool`, *optional*, defaults to `False`):
            Set every dropout probability of the student to 0.

        > Parameters that control the data

        group_column (`str`, *optional*):
            The column of the training rows that says of which group a row is (a cache of groups knows its own). A task
            file may name it as `metadata.group`. The rows of a group are always in one batch. A row without a value
            is a group by itself.
        unlabelled_ratio (`float`, *optional*):
            The share of rows without a label in a batch, from 0 to 1; an epoch shows each of them once, and the
            labelled rows as often as that takes. With `transport_scope` over groups: the share of whole groups,
            whatever labels their rows have; the rest of a batch is labelled rows, for their labels alone. Default:
            rows are mixed as they come.
        max_length (`int`, *optional*, defaults to `1024`):
            Longest sequence in tokens, prompt and answer together; never more than the model's context. A longer
            prompt is cut from the left, the answer never.
        apply_chat_template (`bool`, *optional*, defaults to `False`):
            Render the plain prompts of a task as a user's turn in the tokenizer's chat template. Conversational rows
            always use it.
        add_eos (`bool`, *optional*):
            The end-of-sequence token belongs to the answer: it is supervised in training and counts in evaluation.
            Default: yes for prompt-completion rows and for answers that are generated, no for rows with answer
            choices, which are ranked without it, and for conversational rows, whose template closes the turn.
        dataset_num_proc (`int`, *optional*):
            Processes that tokenise.
        pad_to_multiple_of (`int`, *optional*):
            Pad the batch to a multiple of this length.
        packing (`bool`, *optional*, defaults to `False`):
            Lay the rows of a training batch end to end instead of padding them. For decoder-only models whose
            attention keeps the rows apart, which is tried on student and teacher. It is meant for flash attention:
            other attention compares all tokens of a batch with each other. Evaluation pads.

        > Parameters that control how the loss is computed

        fused (`str`, *optional*, defaults to `"auto"`):
            Compute the loss from hidden states and heads, one piece of the vocabulary at a time, so that no logits of
            the whole vocabulary are made: wherever both models allow it (`"auto"`), never (`"never"`), or with an
            error where a model does not allow it (`"always"`). The loss is the same.

        > Parameters that control the cross-entropy and the divergence

        alpha (`float`, *optional*, defaults to `0.9`):
            Weight of the divergence; cross-entropy has `1 - alpha`.
        divergence (`str`, *optional*, defaults to `"kl"`):
            Divergence between teacher and student: `"kl"` (teacher to student), `"rkl"` (student to teacher),
            `"js"`, `"tvd"` or `"none"`.
        temperature (`float`, *optional*, defaults to `2.0`):
            Temperature of the divergence, whose factor (its square; for `tvd` the temperature itself) lets `alpha`
            mean the same at every temperature.

        > Parameters that control the transport terms

        transport_scope (`str`, *optional*, defaults to `"batch"`):
            Which supervised tokens form one transport problem: all of the batch (`"batch"`), the t-th answer tokens
            of all examples (`"position"`), the tokens of one example (`"sequence"`), or the tokens of the rows that
            have one value in their column `group_column` (`"group"`).
        transport_group_size (`int`, *optional*, defaults to `256`):
            The most tokens of a transport problem. A problem with more is cut into random groups of nearly equal size,
            other ones in each update, so that the time of an update grows with the number of answer tokens and not
            with its square. `0`: no problem is cut. The groups of `group_column` are never cut.
        transport_across_devices (`bool`, *optional*, defaults to `True`):
            A transport problem is over the batch of all devices, so that two devices with 8 examples each do what
            one with 16 does. Otherwise every device has its own problem.
        transport_accumulation (`bool`, *optional*, defaults to `False`):
            A transport problem is over the whole accumulation window, and the student runs twice over each
            micro-batch. Otherwise every micro-batch has its own problem.
        vocabulary (`str`, *optional*, defaults to `"full"`):
            What the transport terms see: the `"full"` vocabulary, or with `"verbalizers"` only the tokens of the
            answer choices.

        > Parameters that control the Sinkhorn term

        sinkhorn_weight (`float`, *optional*, defaults to `0.8`):
            Weight of the SinKD term (`beta` in the paper, a mean over supervised tokens here). `0` switches it off.
        sinkhorn_temperature (`float`, *optional*, defaults to `2.0`):
            Temperature of both softmaxes before the cost.
        sinkhorn_epsilon (`float`, *optional*, defaults to `0.1`):
            Strength of the entropic regularisation, in units of the cost (L1: between 0 and 2).
        sinkhorn_iterations (`int`, *optional*, defaults to `20`):
            Most iterations of the solver, each one row and one column normalisation.
        sinkhorn_threshold (`float`, *optional*):
            Stop earlier when the row-marginal error is below this share of the mass.
        sinkhorn_gradient (`str`, *optional*, defaults to `"unrolled"`):
            Gradient of the transport cost: `"unrolled"` (through the iterations, as published), `"implicit"` (exact
            at convergence, stores no iterations) or `"envelope"` (plan detached: the gradient of the regularised
            value, not of the transport cost).
        cost_norm (`str`, *optional*, defaults to `"l1"`):
            Cost between a student and a teacher distribution.

        > Parameters with other defaults than in `transformers.TrainingArguments`

        learning_rate (`float`, *optional*, defaults to `0.0001`):
            The initial learning rate of the optimizer. Transformers has `5e-5`; LoRA students need the larger step.
        logging_steps (`float`, *optional*, defaults to `10`):
            Log every this many updates; a float below 1 is a share of training. Transformers has `500`.
        remove_unused_columns (`bool`, *optional*, defaults to `False`):
            Remove columns that the model's forward does not take. Batches are made of them here, so it stays off.
        train_sampling_strategy (`str`, *optional*, defaults to `"group_by_length"`):
            Which rows share a batch: rows of like length (`"group_by_length"`), so that little of a batch is padding,
            any rows (`"random"`), or rows in their order (`"sequential"`). Transformers has `"random"`.
    """

    _VALID_DICT_FIELDS = [  # noqa: RUF012 - transformers extends this very list by name
        *TrainingArguments._VALID_DICT_FIELDS,
        "model_init_kwargs",
        "teacher_model_init_kwargs",
    ]

    # Defaults that differ from TrainingArguments
    learning_rate: float = 1e-4
    logging_steps: float = 10
    remove_unused_columns: bool = False
    train_sampling_strategy: str = field(
        default="group_by_length", metadata={"choices": ("group_by_length", "random", "sequential")}
    )

    # Models
    model_init_kwargs: dict[str, Any] | str | None = None
    student_layers: int | None = None
    student_decoder_layers: int | None = None
    layer_selection: str = "even"
    layer_selection_rows: int = 64
    check_saved: bool = True
    model_kind: str | None = field(default=None, metadata={"choices": tuple(KINDS)})
    trust_remote_code: bool = False
    teacher_model_name_or_path: str | None = None
    teacher_model_revision: str = "main"
    teacher_model_init_kwargs: dict[str, Any] | str | None = None
    teacher_load_in_4bit: bool = False
    teacher_load_in_8bit: bool = False
    signal: str = field(default="auto", metadata={"choices": SIGNALS})
    choice_normalisation: str = field(default="sum", metadata={"choices": CHOICE_NORMALISATIONS})
    teacher_file: str | None = None
    teacher_url: str | None = None
    teacher_model: str | None = None
    teacher_samples: int = 0
    teacher_rows_per_request: int = 1
    teacher_max_requests: int | None = None
    teacher_concurrency: int = 8
    teacher_way: str = field(default="auto", metadata={"choices": WAYS})
    teacher_cache: str | None = None
    cache_tolerance: float = 0.05
    teacher_deepspeed: str = field(default="auto", metadata={"choices": PLACEMENTS})
    disable_dropout: bool = False

    # Data
    group_column: str | None = None
    unlabelled_ratio: float | None = None
    max_length: int | None = 1024
    apply_chat_template: bool = Reading.apply_chat_template
    add_eos: bool | None = Reading.add_eos
    dataset_num_proc: int | None = None
    pad_to_multiple_of: int | None = None
    packing: bool = False

    # How the loss is computed
    fused: str = field(default=DistillationObjective.fused, metadata={"choices": FUSED})

    # Cross-entropy and divergence
    alpha: float = DistillationObjective.alpha
    divergence: str = field(default=DistillationObjective.divergence, metadata={"choices": DIVERGENCE_CHOICES})
    temperature: float = DistillationObjective.temperature

    # The transport terms
    transport_scope: str = field(default=TransportSettings.transport_scope, metadata={"choices": TRANSPORT_SCOPES})
    transport_group_size: int | None = TransportSettings.transport_group_size
    transport_across_devices: bool = True
    transport_accumulation: bool = False
    vocabulary: str = field(default=TransportSettings.vocabulary, metadata={"choices": VOCABULARIES})

    # The Sinkhorn term
    sinkhorn_weight: float = DistillationObjective.sinkhorn_weight
    sinkhorn_temperature: float = TransportSettings.sinkhorn_temperature
    sinkhorn_epsilon: float = TransportSettings.sinkhorn_epsilon
    sinkhorn_iterations: int = TransportSettings.sinkhorn_iterations
    sinkhorn_threshold: float | None = TransportSettings.sinkhorn_threshold
    sinkhorn_gradient: str = field(default=TransportSettings.sinkhorn_gradient, metadata={"choices": GRADIENTS})
    cost_norm: str = field(default=TransportSettings.cost_norm, metadata={"choices": COST_NORMS})

    def __post_init__(self) -> None:
        self.layer_selection = layers_as_text(self.layer_selection)
        check_settings(self)
        use_cpus_if_alone(self)
        check_together(self)
        with naming_settings(self):
            super().__post_init__()
        check_launch(self)
        self._check_completed()

    def check(self) -> None:
        """Checks the settings again, for attributes may have been set since; raises as making them does."""
        if plain(self.eval_strategy) == "no":
            self.do_eval = False  # made from eval_strategy, and so as old as the settings
        check_settings(self)
        check_together(self)
        self._check_completed()

    def _check_completed(self) -> None:
        check_revision("teacher_model_revision", self.teacher_model_revision, self.teacher_model_name_or_path)
        check_distillation(self)
        check_optimizer(self)

    def __getstate__(self) -> dict[str, Any]:
        # `training_args.bin` and copies for other processes are pickled: a secret does not go along.
        return {name: None if is_secret_name(name) else value for name, value in self.__dict__.items()}

    def __deepcopy__(self, memo: dict[int, Any]) -> "SinKDConfig":
        twin = type(self).__new__(type(self))
        memo[id(self)] = twin
        twin.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return twin

    @cached_property
    def _setup_devices(self) -> torch.device:
        start_cpu_group(self)
        device: torch.device = super()._setup_devices
        return device

    @property
    def teacher_quantised(self) -> str | None:
        """`"4bit"` or `"8bit"` where the teacher is loaded so, else `None`."""
        return "4bit" if self.teacher_load_in_4bit else "8bit" if self.teacher_load_in_8bit else None

    @property
    def named_teachers(self) -> list[str]:
        """The settings that name a teacher, of which there may be one; a cache may stand beside it."""
        names = ("teacher_model_name_or_path", "teacher_file", "teacher_url")
        return [name for name in names if getattr(self, name) is not None]

    @property
    def has_teacher(self) -> bool:
        """Whether some teacher, or a cache of one, is named."""
        return bool(self.named_teachers) or self.teacher_cache is not None

    @property
    def sample_seed(self) -> int:
        """What draws a sample of the training rows: `data_seed`, which orders them as well, or without one `seed`."""
        return self.seed if self.data_seed is None else self.data_seed

    def objective(self) -> DistillationObjective:
        """The loss that these settings describe."""
        kinds: dict[str, Any] = {"transported": TransportedSettings, "states": StateSettings}
        parts = {
            part: kind(**{one.name: getattr(self, one.name) for one in fields(kind)}) for part, kind in kinds.items()
        }
        own = {one.name: getattr(self, one.name) for one in fields(DistillationObjective) if one.name not in parts}
        return DistillationObjective(**{**own, "transport_group_size": self.transport_group_size or None, **parts})

    def group_seed(self, update: int) -> int:
        """What draws the groups of a transport problem in an update: equal on all ranks, and after a resume."""
        return (self.seed << 32) + update
