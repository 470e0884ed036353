"""What commands are asked to do, beside [`SinKDConfig`] and TRL's `ModelConfig`: dataclasses of settings."""

from dataclasses import dataclass, field

from trl import ModelConfig

from sinkd_llm.errors import InputError
from sinkd_llm.models.kinds import KINDS
from sinkd_llm.tasks.loading import SPLIT_KEYS
from sinkd_llm.teachers.balance import METHODS
from sinkd_llm.teachers.cache.layout import CONTENTS, ENCODINGS
from sinkd_llm.training.config import SinKDConfig
from sinkd_llm.training.settings.checks import check_settings
from sinkd_llm.training.settings.texts import as_in, described


@described
@dataclass
class TaskArguments:
    """
    What a run trains and is scored on.

    Args:
        task (`str`, *optional*):
            A task's name (see `sinkd tasks list`) or the path of a task's YAML file.
        data_dir (`str`, *optional*):
            Folder with the data in the original GLUE/SuperGLUE file formats, instead of the hub.
        id_column (`str`, *optional*):
            The column of the task's data that holds a row's own id, by which a `teacher_file` knows it. Default: an id
            is made of task, split, place and text.
        dataset_name (`str`, *optional*):
            Instead of `task`: prompt-completion rows, from the hub or a local `.json`, `.jsonl`, `.csv`, `.tsv` or
            `.parquet` file.
        dataset_config (`str`, *optional*):
            Configuration of the hub data set.
        dataset_train_split (`str`, *optional*, defaults to `"train"`):
            Split of `dataset_name` to train on, or a part of it: `"train[:80%]"`, `"train[100:]"`.
        unlabelled_file (`str`, *optional*):
            Rows without labels to train on besides, which a teacher labels: a `.txt` with one text a line, or `.csv`,
            `.tsv`, `.jsonl`, `.json` or `.parquet` with the columns of the task's rows.
        dataset_unlabelled_split (`str`, *optional*):
            Another split of the task's data (`test`) as rows without labels to train on; labels that it has are not
            looked at.
        max_unlabelled_samples (`int`, *optional*):
            A sample of this many rows without labels.
        allow_unlabelled (`bool`, *optional*, defaults to `False`):
            Rows of the training data may have no label (empty or -1): then the teacher alone teaches them.
        labels_per_class (`int`, *optional*):
            Forget the labels of all training rows but so many of each answer, drawn with the seed of the data: to see
            what few labels give beside many rows without.
        labelled_rows_only (`bool`, *optional*, defaults to `False`):
            Leave out the training rows without a label, also those whose label `labels_per_class` forgets: what the
            labels give alone.
        heldout_share (`float`, *optional*, defaults to `0.0`):
            Hold out about this share of the labelled training rows, which follow from a hash of their text: nothing is
            trained on them, and the student is scored on them at the end, to choose settings by. They keep their
            labels under `labels_per_class`.
        validation_share (`float`, *optional*, defaults to `0.0`):
            For rows without a validation split: evaluate on about this share of the labelled training rows, and train
            on the others. A hash of a row's text decides, so that the split never depends on order or seed, and equal
            texts are on one side.
        teacher_task (`str`, *optional*):
            Another task over the same rows, whose prompt the teacher reads: a name or a YAML file.
        teacher_num_fewshot (`int`, *optional*, defaults to `0`):
            So many labelled training rows before each prompt of the teacher, drawn with the seed of the data, never
            the row itself.
        balance (`str`, *optional*):
            Balance the answers of a teacher that is a file, a server or a cache to merge to a prior over the choices,
            over all training rows: `uniform`, `labels` (the shares of the training rows' labels), or a YAML file that
            maps each choice to its share.
        balance_strength (`float`, *optional*, defaults to `1.0`):
            The part of the correction that is made, on the scale of logarithms: 0 none, 1 all.
        balance_method (`str`, *optional*, defaults to `"sinkhorn"`):
            How: `"sinkhorn"` until the mean probability of each choice is its share, or `"calibration"`, one step.
        score_before (`bool`, *optional*, defaults to `True`):
            Score the student before training, too.
        profile (`bool`, *optional*, defaults to `True`):
            Time teacher and student at the end on single rows, for about two seconds each: latency and memory in the
            results.
        keep_probabilities (`bool`, *optional*, defaults to `True`):
            Keep the probabilities of all choices, and what the rows say, in `predictions.json`.
        dataset_test_split (`str`, *optional*, defaults to `"test"`):
            Split of `dataset_name` to evaluate on, or a part (`"train[80%:]"`); left out if the data set has no such
            split.
        max_train_samples (`int`, *optional*):
            Train on a sample of this many rows, drawn with `data_seed` (default: `seed`).
        teacher_examined_rows (`int`, *optional*, defaults to `128`):
            A teacher that is a model here is examined on so many of its training rows, beside the evaluation rows:
            has it memorised them, and is it better than the most frequent answer and than TF-IDF? `0`: it is not.
        max_eval_samples (`int`, *optional*):
            Evaluate on a sample of this many rows, the same for every seed.
        overwrite_output_dir (`bool`, *optional*, defaults to `False`):
            Replace an earlier run in `output_dir`.

    Raises:
        InputError: for neither a task nor a data set, for both, and for a value that its setting does not take.
    """

    task: str | None = None
    data_dir: str | None = None
    id_column: str | None = None
    dataset_name: str | None = None
    dataset_config: str | None = None
    dataset_train_split: str = "train"
    unlabelled_file: str | None = None
    dataset_unlabelled_split: str | None = field(default=None, metadata={"choices": ("test",)})
    max_unlabelled_samples: int | None = None
    allow_unlabelled: bool = False
    labels_per_class: int | None = None
    labelled_rows_only: bool = False
    heldout_share: float = 0.0
    validation_share: float = 0.0
    teacher_task: str | None = None
    teacher_num_fewshot: int = 0
    balance: str | None = None
    balance_strength: float = 1.0
    balance_method: str = field(default="sinkhorn", metadata={"choices": METHODS})
    teacher_examined_rows: int = 128
    score_before: bool = True
    profile: bool = True
    keep_probabilities: bool = True
    dataset_test_split: str = "test"
    max_train_samples: int | None = None
    max_eval_samples: int | None = None
    overwrite_output_dir: bool = False

    def __post_init__(self) -> None:
        if (self.task is None) == (self.dataset_name is None):
            raise InputError(
                "give --task (see 'sinkd tasks list')"
                + (" or --dataset_name, not both." if self.task else ", or --dataset_name.")
            )
        if self.dataset_name is not None and self.data_dir is not None:
            raise InputError("--data_dir belongs to --task; a --dataset_name names its own place.")
        if self.dataset_name is not None:
            for name in (
                "id_column",
                "unlabelled_file",
                "dataset_unlabelled_split",
                "allow_unlabelled",
                "labels_per_class",
                "labelled_rows_only",
                "heldout_share",
                "teacher_task",
                "teacher_num_fewshot",
                "balance",
            ):
                if getattr(self, name):
                    raise InputError(f"--{name} belongs to --task, which has answer choices; write a task file.")
        if self.balance is None and (self.balance_strength != 1 or self.balance_method != METHODS[0]):
            raise InputError("--balance_strength and --balance_method are about a --balance; give one.")
        if self.unlabelled_file is not None and self.dataset_unlabelled_split is not None:
            raise InputError("--unlabelled_file and --dataset_unlabelled_split are both given; give one of them.")
        unlabelled = self.unlabelled_file or self.dataset_unlabelled_split
        if self.max_unlabelled_samples is not None and not unlabelled:
            raise InputError(
                "--max_unlabelled_samples is about an --unlabelled_file or a --dataset_unlabelled_split; give one, or "
                "leave it out."
            )
        check_settings(self)


@described
@dataclass
class LaunchArguments:
    """
    How a command runs: in how many processes, or not at all.

    Args:
        dry_run (`bool`, *optional*, defaults to `False`):
            Load settings, data and tokenizers, show three rows as they are rendered, the updates, the memory and the
            time that the run would take, and stop. `output_dir` is neither made nor written to.
        accelerate_config (`str`, *optional*):
            Run in several processes: the name of a file in `ds_configs/` (`zero3`, `fsdp2`, `ddp`, `cpu`, …) or the
            path of an accelerate configuration. Inside `accelerate launch`, `torchrun` or `deepspeed` it is not
            looked at.
        num_processes (`int`, *optional*):
            Processes that `accelerate_config` starts. Default: what it says, else one per GPU.

    Raises:
        InputError: for a value that its setting does not take.
    """

    dry_run: bool = False
    accelerate_config: str | None = None
    num_processes: int | None = None

    def __post_init__(self) -> None:
        check_settings(self)


@described
@dataclass
class CacheArguments:
    """
    What is kept of the teacher, and where.

    Args:
        output (`str`, *optional*):
            Folder of the cache. Default: the recipe's `teacher_cache`.
        content (`str`, *optional*, defaults to `"topk"`):
            What is kept of a row: the largest logits (`"topk"`), the logits of the answer tokens (`"verbalizers"`), or
            all (`"full"`). Classification heads are always kept in full.
        top_k (`int`, *optional*, defaults to `32`):
            Logits of a row that `"topk"` keeps; with `vocabulary: verbalizers` the answer tokens are among them.
        temperatures (`list[float]`, *optional*):
            Temperatures at which the mass of the other ids is stored, beside 1 and the temperatures of the recipe.
        encoding (`str`, *optional*):
            How logits are stored: exactly (`"float32"`), or in 16 bits as their distance from the largest one of the
            row (`"fixed16"`). Default: `"float32"` for `"full"`, else `"fixed16"`.
        vocabulary_size (`int`, *optional*):
            Keep the first so many logits of a row, for a student with fewer.
        merge (`list[str]`, *optional*):
            In place of a teacher: the folders of caches over the answer choices of the same rows, to be made one.
        merge_weights (`list[float]`, *optional*):
            The weight of each of them. Default: the same for all.
        merge_by (`str`, *optional*, defaults to `"probabilities"`):
            How: weighted means of `"probabilities"` or of `"logits"` (log-probabilities), over the caches that have an
            answer to a row; or the name of a column of the data that holds the folder's name or place (from 0) of the
            cache that speaks of the row.
        score_teacher (`bool`, *optional*, defaults to `True`):
            Score the teacher, for the results tables of its students.
        overwrite (`bool`, *optional*, defaults to `False`):
            Replace another cache in `output`.

    Raises:
        InputError: for a value that its setting does not take.
    """

    output: str | None = None
    content: str = field(default="topk", metadata={"choices": CONTENTS})
    top_k: int = 32
    temperatures: list[float] | None = None
    encoding: str | None = field(default=None, metadata={"choices": ENCODINGS})
    vocabulary_size: int | None = None
    merge: list[str] | None = None
    merge_weights: list[float] | None = None
    merge_by: str = "probabilities"
    score_teacher: bool = True
    overwrite: bool = False
    accelerate_config: str | None = as_in(LaunchArguments, "accelerate_config")
    num_processes: int | None = as_in(LaunchArguments, "num_processes")

    def __post_init__(self) -> None:
        check_settings(self)


@described
@dataclass
class EvaluateArguments:
    """
    What is scored, and how. Settings that training has, too, mean the same.

    Args:
        model_name_or_path (`str`, *optional*):
            The model to score: a hub id, a folder, a `*.gguf` file or a bundled name.
        split (`str`, *optional*, defaults to `"validation"`):
            Which rows of the task.
        batch_size (`int`, *optional*, defaults to `32`):
            Rows that are scored together.
        model_kind (`str`, *optional*):
            Load the model as a model of this kind. Default: what its checkpoint is.
        dtype (`str`, *optional*, defaults to `"float32"`):
            Load the weights in this type.
        load_in_4bit (`bool`, *optional*, defaults to `False`):
            Load the model in 4-bit NF4 (bitsandbytes).
        load_in_8bit (`bool`, *optional*, defaults to `False`):
            Load the model in 8 bit (bitsandbytes).
        teacher_file (`str`, *optional*):
            A teacher's answers to the rows (`.csv`, `.tsv`, `.jsonl`, `.json` or `.parquet`, such as `--output` of an
            evaluation of the teacher): how often the model agrees, and how far its probabilities are.
        teacher_cache (`str`, *optional*):
            The folder of a cache whose teacher was scored on the rows, for the same.
        profile (`bool`, *optional*, defaults to `True`):
            Time the model on single rows of the first task, for about two seconds.
        output (`str`, *optional*):
            Write scores and predictions to this JSON file; to a `.jsonl` file one row a line: id, right answer, chosen
            one, probabilities of all choices, and the teacher's.
        with_text (`bool`, *optional*, defaults to `False`):
            The rows of a `.jsonl` file hold the rendered prompt, too.

    Raises:
        InputError: for a missing model or task, and for a value that its setting does not take.
    """

    model_name_or_path: str | None = None
    task: str | None = as_in(TaskArguments, "task")
    data_dir: str | None = as_in(TaskArguments, "data_dir")
    split: str = field(default="validation", metadata={"choices": tuple(SPLIT_KEYS)})
    max_eval_samples: int | None = as_in(TaskArguments, "max_eval_samples")
    batch_size: int = 32
    max_length: int | None = as_in(SinKDConfig, "max_length")
    apply_chat_template: bool = as_in(SinKDConfig, "apply_chat_template")
    add_eos: bool | None = as_in(SinKDConfig, "add_eos")
    model_revision: str = as_in(ModelConfig, "model_revision")
    model_kind: str | None = field(default=None, metadata={"choices": tuple(KINDS)})
    dtype: str = as_in(ModelConfig, "dtype")
    load_in_4bit: bool = False
    load_in_8bit: bool = False
    attn_implementation: str | None = as_in(ModelConfig, "attn_implementation")
    trust_remote_code: bool = as_in(SinKDConfig, "trust_remote_code")
    teacher_file: str | None = None
    teacher_cache: str | None = None
    profile: bool = True
    output: str | None = None
    with_text: bool = False

    def __post_init__(self) -> None:
        if self.model_name_or_path is None:
            raise InputError("--model_name_or_path is missing: the model to score.")
        if self.with_text and not str(self.output or "").lower().endswith(".jsonl"):
            raise InputError("--with_text is about the rows of an --output file that ends in .jsonl; give one.")
        if self.task is None:
            raise InputError("--task is missing; 'sinkd tasks list' shows the tasks.")
        check_settings(self)
