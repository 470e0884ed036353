"""`SinKDConfig`: `transformers.TrainingArguments` plus what distillation needs."""

import copy
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainingArguments

from sinkd_llm.errors import InputError, plain
from sinkd_llm.library_errors import naming_settings
from sinkd_llm.secrets import is_secret_name
from sinkd_llm.training.processes import check_launch, start_cpu_group, use_cpus_if_alone
from sinkd_llm.training.settings.checks import check_settings
from sinkd_llm.training.settings.combinations import check_optimizer, check_revision, check_together

if TYPE_CHECKING:
    from sinkd_llm.objectives import DistillationObjective

DIVERGENCE_CHOICES = ["kl", "rkl", "js", "tvd", "none"]
TEACHER_DEEPSPEED_CHOICES = ["auto", "replicate", "shard", "offload"]
MODEL_KIND_CHOICES = ["causal-lm", "seq2seq-lm", "sequence-classification", "masked-lm"]


@dataclass
class SinKDConfig(TrainingArguments):
    r"""
    Configuration class for the [`SinKDTrainer`].

    This class includes only the parameters that are specific to SinKD. For the others see the
    [`~transformers.TrainingArguments`] documentation; where a default differs from theirs, the note
    at the end says so.

    The loss is `(1 - alpha) * CE + alpha * divergence + sinkhorn_weight * SinKD`, every term a mean
    over supervised tokens.

    Parameters:
        > Parameters that control the models

        model_init_kwargs (`dict[str, Any]`, *optional*):
            Keyword arguments for [`load_model`] when the `model` argument of the trainer is a string.
        student_layers (`int`, *optional*):
            Build the student from this many evenly spaced layers of the model that `model` names, or
            of the teacher if `model` is `None`.
        student_decoder_layers (`int`, *optional*):
            Decoder layers of an encoder-decoder student. Default: `student_layers`, which is then the number
            of its encoder's.
        model_kind (`str`, *optional*):
            Load the student as `"causal-lm"`, `"seq2seq-lm"`, `"sequence-classification"` or `"masked-lm"`.
            Default: what its checkpoint is; an encoder gets a classification head for the task, unless the
            teacher scores words.
        trust_remote_code (`bool`, *optional*, defaults to `False`):
            Whether to run modelling code that comes with a model from the hub.
        teacher_model_name_or_path (`str`, *optional*):
            The teacher: a hub id, a folder, a `*.gguf` file or a bundled name. Without a teacher the
            trainer fine-tunes with cross-entropy.
        teacher_model_revision (`str`, *optional*, defaults to `"main"`):
            Revision of the teacher on the hub.
        teacher_model_init_kwargs (`dict[str, Any]`, *optional*):
            Keyword arguments for [`load_model`] when the teacher is given as a string.
        teacher_load_in_4bit (`bool`, *optional*, defaults to `False`):
            Load the teacher in 4-bit NF4 (bitsandbytes).
        teacher_load_in_8bit (`bool`, *optional*, defaults to `False`):
            Load the teacher in 8 bit (bitsandbytes).
        teacher_cache (`str`, *optional*):
            Folder that `sinkd cache` wrote: the teacher's signal comes from there, and no teacher is loaded, unless
            the student is cut from it.
        cache_tolerance (`float`, *optional*, defaults to `0.05`):
            Warn before training if a top-k cache knows the transport cost (0 to 2) less well than this, as a
            mean over pairs of rows.
        teacher_deepspeed (`str`, *optional*, defaults to `"auto"`):
            Where the teacher's weights lie when several processes train: `"replicate"` (whole in each),
            `"shard"` (spread over their devices: ZeRO-3, or FSDP where the student has it), `"offload"` (spread
            over their CPU memories, ZeRO-3) or `"auto"`: as the student's. See [`place_teacher`].
        disable_dropout (`bool`, *optional*, defaults to `False`):
            Whether to set every dropout probability of the student to 0.

        > Parameters that control the data

        max_length (`int` or `None`, *optional*, defaults to `1024`):
            Longest sequence in tokens, prompt and answer together; never more than the model's
            context. A longer *prompt* is cut from the left, the answer never.
        apply_chat_template (`bool`, *optional*, defaults to `False`):
            Whether to render the plain prompts of a task as a user's turn in the tokenizer's chat
            template. Conversational rows always use it.
        add_eos (`bool`, *optional*):
            Whether the end-of-sequence token is supervised after the answer. Default: yes for
            prompt-completion rows, no for rows with answer choices, which are ranked without it.
        dataset_num_proc (`int`, *optional*):
            Processes that tokenise.
        pad_to_multiple_of (`int`, *optional*):
            Pad the batch to a multiple of this length.

        > Parameters that control the cross-entropy and the divergence

        alpha (`float`, *optional*, defaults to `0.9`):
            Weight of the divergence in `[0, 1]`; cross-entropy has `1 - alpha`.
        divergence (`str`, *optional*, defaults to `"kl"`):
            `"kl"` (teacher to student), `"rkl"` (student to teacher), `"js"`, `"tvd"` or `"none"`.
        temperature (`float`, *optional*, defaults to `2.0`):
            Temperature of the divergence. It carries the usual temperature-squared factor, so that
            `alpha` means the same at every temperature.

        > Parameters that control the Sinkhorn term

        sinkhorn_weight (`float`, *optional*, defaults to `0.8`):
            Weight of the SinKD term (`beta` in the paper, a mean over supervised tokens here).
            `0` switches it off.
        sinkhorn_temperature (`float`, *optional*, defaults to `2.0`):
            Temperature of both softmaxes in front of the cost.
        sinkhorn_epsilon (`float`, *optional*, defaults to `0.1`):
            Strength of the entropic regularisation, in units of the cost (L1: between 0 and 2).
        sinkhorn_iterations (`int`, *optional*, defaults to `20`):
            Most iterations of the solver, each one row and one column normalisation.
        sinkhorn_threshold (`float`, *optional*):
            Stop earlier when the row-marginal error is below this share of the mass.
        sinkhorn_gradient (`str`, *optional*, defaults to `"unrolled"`):
            `"unrolled"` (through the iterations, as published), `"implicit"` (exact at convergence,
            stores no iterations) or `"envelope"` (plan detached: the gradient of the regularised
            value, not of the transport cost).
        cost_norm (`str`, *optional*, defaults to `"l1"`):
            Cost between a student and a teacher distribution: `"l1"` or `"sql2"`.
        transport_scope (`str`, *optional*, defaults to `"batch"`):
            Which supervised tokens form one transport problem: all of the batch (`"batch"`),
            the t-th answer tokens of all examples (`"position"`), or those of one example
            (`"sequence"`).
        transport_across_devices (`bool`, *optional*, defaults to `True`):
            Whether the batch of a transport problem is that of all devices, so that two devices with 8 examples
            each do what one with 16 does. Otherwise every device has its own problem.
        transport_accumulation (`bool`, *optional*, defaults to `False`):
            Whether the batch of a transport problem is all of an accumulation window. The student then
            runs twice over each micro-batch. Otherwise every micro-batch has its own problem.
        vocabulary (`str`, *optional*, defaults to `"full"`):
            `"full"`, or `"verbalizers"`: the SinKD term sees only the tokens of the answer choices.

    > [!NOTE]
    > These parameters have default values different from [`~transformers.TrainingArguments`]:
    > - `learning_rate`: Defaults to `1e-4` instead of `5e-5` (LoRA students need the larger step).
    > - `logging_steps`: Defaults to `10` instead of `500`.
    > - `remove_unused_columns`: Defaults to `False` instead of `True`.
    """

    _VALID_DICT_FIELDS = [  # noqa: RUF012 - transformers extends this very list by name
        *TrainingArguments._VALID_DICT_FIELDS,
        "model_init_kwargs",
        "teacher_model_init_kwargs",
    ]

    # Defaults that differ from TrainingArguments
    learning_rate: float = field(default=1e-4, metadata={"help": "The initial learning rate of the optimizer."})
    logging_steps: float = field(
        default=10,
        metadata={"help": "Log every this many updates; a float below 1 is a share of training."},
    )
    remove_unused_columns: bool = field(
        default=False,
        metadata={"help": "Remove columns the model's forward does not take. Leave it off here."},
    )

    # Models
    model_init_kwargs: dict[str, Any] | str | None = field(
        default=None,
        metadata={"help": "Keyword arguments for `load_model` when the student is given as a string."},
    )
    student_layers: int | None = field(
        default=None,
        metadata={
            "help": "Build the student from this many evenly spaced layers of the model that "
            "`model` names, or of the teacher if no student is named."
        },
    )
    student_decoder_layers: int | None = field(
        default=None,
        metadata={"help": "Decoder layers of an encoder-decoder student. Default: student_layers."},
    )
    check_saved: bool = field(
        default=True,
        metadata={"help": "Load the saved student and compare its outputs with those of the trained one."},
    )
    model_kind: str | None = field(
        default=None,
        metadata={
            "help": "Load the student as this. Default: what its checkpoint is; an encoder gets a classification "
            "head for the task.",
            "choices": MODEL_KIND_CHOICES,
        },
    )
    trust_remote_code: bool = field(
        default=False,
        metadata={"help": "Whether to run modelling code that comes with a model from the hub."},
    )
    teacher_model_name_or_path: str | None = field(
        default=None,
        metadata={"help": "The teacher: a hub id, a folder, a *.gguf file or a bundled name."},
    )
    teacher_model_revision: str = field(default="main", metadata={"help": "Revision of the teacher on the hub."})
    teacher_model_init_kwargs: dict[str, Any] | str | None = field(
        default=None,
        metadata={"help": "Keyword arguments for `load_model` when the teacher is given as a string."},
    )
    teacher_load_in_4bit: bool = field(
        default=False, metadata={"help": "Load the teacher in 4-bit NF4 (bitsandbytes)."}
    )
    teacher_load_in_8bit: bool = field(default=False, metadata={"help": "Load the teacher in 8 bit (bitsandbytes)."})
    teacher_cache: str | None = field(
        default=None,
        metadata={"help": "Folder that 'sinkd cache' wrote, in place of a teacher in memory."},
    )
    cache_tolerance: float = field(
        default=0.05,
        metadata={"help": "Warn if a top-k cache knows the transport cost (0 to 2) less well than this."},
    )
    teacher_deepspeed: str = field(
        default="auto",
        metadata={
            "help": "The teacher's weights when several processes train: whole in each, spread over their devices, "
            "or over their CPU memories. Default: as the student's.",
            "choices": TEACHER_DEEPSPEED_CHOICES,
        },
    )
    disable_dropout: bool = field(
        default=False, metadata={"help": "Set every dropout probability of the student to 0."}
    )

    # Data
    max_length: int | None = field(
        default=1024,
        metadata={
            "help": "Longest sequence in tokens, prompt and answer together. A longer prompt is cut "
            "from the left, the answer never."
        },
    )
    apply_chat_template: bool = field(
        default=False,
        metadata={"help": "Render plain prompts as a user's turn in the chat template."},
    )
    add_eos: bool | None = field(
        default=None,
        metadata={
            "help": "Supervise the end-of-sequence token after the answer. Default: yes for "
            "prompt-completion rows, no for rows with answer choices."
        },
    )
    dataset_num_proc: int | None = field(default=None, metadata={"help": "Processes that tokenise."})
    pad_to_multiple_of: int | None = field(
        default=None, metadata={"help": "Pad the batch to a multiple of this length."}
    )

    # Cross-entropy and divergence
    alpha: float = field(
        default=0.9,
        metadata={"help": "Weight of the divergence in [0, 1]; cross-entropy has 1 - alpha."},
    )
    divergence: str = field(
        default="kl",
        metadata={"help": "Divergence between teacher and student.", "choices": DIVERGENCE_CHOICES},
    )
    temperature: float = field(
        default=2.0,
        metadata={"help": "Temperature of the divergence, which carries its squared factor."},
    )

    # The Sinkhorn term
    sinkhorn_weight: float = field(
        default=0.8, metadata={"help": "Weight of the SinKD term (the paper's beta); 0: off."}
    )
    sinkhorn_temperature: float = field(
        default=2.0, metadata={"help": "Temperature of both softmaxes in front of the cost."}
    )
    sinkhorn_epsilon: float = field(default=0.1, metadata={"help": "Entropic regularisation, in units of the cost."})
    sinkhorn_iterations: int = field(default=20, metadata={"help": "Most iterations of the Sinkhorn solver."})
    sinkhorn_threshold: float | None = field(
        default=None,
        metadata={"help": "Stop when the row-marginal error is below this share of the mass."},
    )
    sinkhorn_gradient: str = field(
        default="unrolled",
        metadata={
            "help": "Gradient of the transport cost: through the iterations, exact at convergence, "
            "or with the plan detached.",
            "choices": ["unrolled", "implicit", "envelope"],
        },
    )
    cost_norm: str = field(
        default="l1",
        metadata={"help": "Cost between a student and a teacher distribution.", "choices": ["l1", "sql2"]},
    )
    transport_scope: str = field(
        default="batch",
        metadata={"help": "Which tokens form one transport problem.", "choices": ["batch", "position", "sequence"]},
    )
    transport_across_devices: bool = field(
        default=True,
        metadata={"help": "A transport problem is over the batch of all devices, not over each device's own."},
    )
    transport_accumulation: bool = field(
        default=False,
        metadata={
            "help": "A transport problem is over the whole accumulation window, at the cost of a second "
            "forward of the student."
        },
    )
    vocabulary: str = field(
        default="full",
        metadata={
            "help": "Whether the SinKD term sees the full vocabulary or only the answer tokens.",
            "choices": ["full", "verbalizers"],
        },
    )

    def __post_init__(self) -> None:
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
        if self.teacher_load_in_4bit and self.teacher_load_in_8bit:
            raise InputError("teacher_load_in_4bit and teacher_load_in_8bit are both set; choose one of them.")
        if self.student_decoder_layers is not None and self.student_layers is None:
            raise InputError("student_decoder_layers is set without student_layers; give both.")
        check_optimizer(self)
        try:
            self.objective()
        except InputError:
            raise
        except ValueError as error:
            raise InputError(str(error)) from error

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
    def sample_seed(self) -> int:
        """What draws a sample of the training rows: `data_seed`, which orders them as well, or without one `seed`."""
        return self.seed if self.data_seed is None else self.data_seed

    def objective(self) -> "DistillationObjective":
        """The loss that these settings describe."""
        from sinkd_llm.objectives import DistillationObjective

        return DistillationObjective(
            alpha=self.alpha,
            divergence=self.divergence,
            temperature=self.temperature,
            sinkhorn_weight=self.sinkhorn_weight,
            sinkhorn_temperature=self.sinkhorn_temperature,
            sinkhorn_epsilon=self.sinkhorn_epsilon,
            sinkhorn_iterations=self.sinkhorn_iterations,
            sinkhorn_threshold=self.sinkhorn_threshold,
            sinkhorn_gradient=self.sinkhorn_gradient,
            cost_norm=self.cost_norm,
            transport_scope=self.transport_scope,
            vocabulary=self.vocabulary,
        )
