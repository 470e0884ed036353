"""`cache`: run a teacher once over the training rows of a recipe and keep what the losses need."""

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sinkd_llm.environment import versions
from sinkd_llm.errors import InputError
from sinkd_llm.interrupts import termination_raises
from sinkd_llm.locks import refuse_if_locked
from sinkd_llm.runs.arguments import CacheArguments, TaskArguments
from sinkd_llm.runs.data import RunData, load_run_data
from sinkd_llm.runs.folder import no_empty_folder, source_size_bytes
from sinkd_llm.runs.inputs import Input, check_path, refuse_inputs, run_inputs, user_path
from sinkd_llm.runs.scorer import Scorer
from sinkd_llm.runs.teacher_rows import as_teacher_reads
from sinkd_llm.runs.training import apply_model_arguments
from sinkd_llm.terminal import is_main_process, progress, say
from sinkd_llm.training.processes import launched_processes

if TYPE_CHECKING:
    from datasets import Dataset
    from trl import ModelConfig

    from sinkd_llm.teachers import LocalTeacher
    from sinkd_llm.teachers.cache.layout import CacheLayout
    from sinkd_llm.teachers.cache.manifest import Manifest, TeacherIdentity
    from sinkd_llm.teachers.cache.writer import CacheWriter
    from sinkd_llm.training.config import SinKDConfig

# Rows without a label that a teacher is examined on: its answers to so many say how sharp it is.
_EXAMINED_WITHOUT_LABEL = 10_000


@dataclass
class CacheResult:
    """What `sinkd cache` gives: the manifest, how many examples were cached before, and what to say of its width."""

    folder: Path
    manifest: "Manifest"
    cached_before: int
    seconds: float
    warning: str | None


@termination_raises()
def run_cache(
    task_args: TaskArguments,
    training_args: "SinKDConfig",
    model_args: "ModelConfig",
    cache_args: CacheArguments,
    argv: Sequence[str] | None = None,
) -> CacheResult:
    """
    Run the teacher of a recipe over its training rows, or over those that an interrupted run has left.

    Args:
        task_args, training_args, model_args: the recipe, as for [`run_distill`].
        cache_args ([`CacheArguments`]): what is kept, and where.
        argv (`Sequence[str]`, *optional*): the flags this came from; they name the recipe's file.

    Raises:
        InputError: for settings that contradict each other, a folder that holds something else or that is read, rows
            for which the teacher gives NaN or infinite logits, and for settings, rows and models that do not fit.
    """
    folder = _folder(training_args, cache_args)
    if cache_args.merge is None and cache_args.merge_weights is not None:
        raise InputError("--merge_weights is about caches to --merge; give them, or leave it out.")
    if cache_args.merge is not None:
        from sinkd_llm.runs.merging import MEANS

        keep = [] if cache_args.merge_by in MEANS else [cache_args.merge_by]
        data = load_run_data(task_args, training_args.sample_seed, keep)
        return _merge(folder, data, training_args, cache_args)
    if not training_args.named_teachers:
        raise InputError(
            "--teacher_model_name_or_path is missing: the model to cache; or give a --teacher_url, a --teacher_file, "
            "or caches to --merge."
        )
    if task_args.balance is not None and training_args.teacher_model_name_or_path is not None:
        raise InputError(
            f"--balance is over the answers to all rows, and those of {training_args.teacher_model_name_or_path} are "
            f"still to be given: write its cache without --balance, then give 'sinkd cache --merge {folder} --balance "
            f"{task_args.balance} --output FOLDER' with the same recipe."
        )
    from sinkd_llm.models.quantisation import is_quantised
    from sinkd_llm.training.pair import default_tokenizer, load_teacher

    _check_processes(training_args)
    if is_main_process():  # the others would find what it has begun
        _check_folder(folder, run_inputs(task_args, training_args, model_args, argv=argv))
    keep = [] if training_args.group_column is None else [training_args.group_column]
    data = load_run_data(task_args, training_args.sample_seed, keep)
    if training_args.teacher_model_name_or_path is None:
        return _cache_answers(folder, data, training_args, cache_args)
    apply_model_arguments(training_args, model_args)
    say(f"Loading {training_args.teacher_model_name_or_path} …")
    model = load_teacher(None, training_args)
    if not is_quantised(model):
        model.to(training_args.device)
    tokenizer = default_tokenizer(model_args.model_name_or_path, model, training_args)
    with no_empty_folder(folder) if is_main_process() else nullcontext():
        return write_cache(folder, model, tokenizer, data, training_args, cache_args)


def _cache_answers(
    folder: Path, data: RunData, training_args: "SinKDConfig", cache_args: CacheArguments
) -> CacheResult:
    """Of a server or a file."""
    from sinkd_llm.runs.asking import cache_answers

    return _by_one_process(
        folder,
        lambda: cache_answers(
            folder,
            data,
            training_args,
            score=cache_args.score_teacher,
            overwrite=cache_args.overwrite,
            learns=False,
        ),
    )


def _by_one_process(folder: Path, write: "Callable[[], Manifest]") -> CacheResult:
    """A cache that the first process of a launch writes alone, while the others wait."""
    from sinkd_llm.teachers.cache.together import first_alone, patient_ranks

    started = time.perf_counter()
    ranks = patient_ranks()
    with no_empty_folder(folder) if is_main_process() else nullcontext():
        manifest = first_alone(ranks, write)
    return CacheResult(folder, manifest, 0, time.perf_counter() - started, None)


def _merge(folder: Path, data: RunData, training_args: "SinKDConfig", cache_args: CacheArguments) -> CacheResult:
    """Of several caches one."""
    from sinkd_llm.runs.merging import merge_caches
    from sinkd_llm.teachers.cache.manifest import Manifest

    caches = [Path(name).expanduser() for name in cache_args.merge or ()]
    # The recipe of the caches may be given again, with its teacher.
    model = training_args.teacher_model_name_or_path
    if training_args.named_teachers and model not in {Manifest.load(path).teacher.name for path in caches}:
        raise InputError(
            f"{training_args.named_teachers[0]} and --merge are both given, and none of the caches is of this "
            "teacher; leave it out."
        )
    if len({path.resolve() for path in (*caches, folder)}) <= len(caches):
        raise InputError(
            f"Of the caches of --merge and --output {folder} two are one folder; give each cache once, and another "
            "folder for what is made of them."
        )
    return _by_one_process(
        folder,
        lambda: merge_caches(
            folder,
            data,
            caches,
            weights=cache_args.merge_weights,
            by=cache_args.merge_by,
            overwrite=cache_args.overwrite,
        ),
    )


def _check_processes(training_args: "SinKDConfig") -> None:
    """Each process of a launch runs the whole teacher over rows of its own."""
    sharded = [name for name in ("DEEPSPEED", "FSDP") if os.environ.get(f"ACCELERATE_USE_{name}") == "true"]
    if training_args.deepspeed is not None and not sharded:
        sharded = ["DEEPSPEED"]
    if sharded and launched_processes() > 1:
        raise InputError(
            f"'sinkd cache' was launched with {sharded[0]}, and here each process holds the whole teacher and caches "
            "rows of its own; launch it with --accelerate_config ddp (or cpu). A teacher that is too large for one "
            "device runs in one process, with --teacher_load_in_4bit, or on a server that --teacher_url names."
        )


def _check_folder(folder: Path, inputs: Iterable[Input]) -> None:
    """Before anything is loaded: may a cache be written there?"""
    from sinkd_llm.teachers.cache.writer import refuse_other_files

    refuse_other_files(folder)
    # The cache that the recipe names may be the one to write.
    refuse_inputs("--output", folder, [given for given in inputs if given.what != "the teacher cache"])
    refuse_if_locked(folder, "wait, or give another folder")


def write_cache(
    folder: Path, model: Any, tokenizer: Any, data: RunData, training_args: "SinKDConfig", cache_args: CacheArguments
) -> CacheResult:
    """
    As [`run_cache`], for a teacher and rows that are loaded already. Of a launch, all processes call it.

    Args:
        folder (`Path`): of the cache.
        model (`PreTrainedModel`): the teacher that `training_args.teacher_model_name_or_path` names. It is frozen.
        tokenizer (`PreTrainedTokenizerBase`): the one that the students will be trained with.
        data ([`RunData`]): the rows; those for evaluation score the teacher.
        training_args, cache_args: as for [`run_cache`].
    """
    from sinkd_llm.distributed import Ranks
    from sinkd_llm.inputs.dataset import tokenize_dataset
    from sinkd_llm.inputs.reading import Reading
    from sinkd_llm.runs.examining import examine_cache
    from sinkd_llm.teachers import LocalTeacher
    from sinkd_llm.teachers.cache.identity import tokenizer_hash
    from sinkd_llm.teachers.cache.manifest import Manifest, RowsIdentity
    from sinkd_llm.teachers.cache.together import in_step
    from sinkd_llm.teachers.cache.writer import CacheWriter, RowOrder
    from sinkd_llm.training.prepare import read_rows
    from sinkd_llm.training.signal import own_tokenizer, signal_to_cache

    name = training_args.teacher_model_name_or_path
    theirs = own_tokenizer(model, name, tokenizer, training_args.trust_remote_code)
    signal = signal_to_cache(training_args, theirs, tokenizer, data.train)
    if signal.over_choices:
        # The teacher alone reads rows, with its own tokenizer.
        data = replace(data, evaluation=as_teacher_reads(data.evaluation))
        tokenizer = theirs
    teacher = LocalTeacher(model, choices=training_args.choice_normalisation if signal.over_choices else None)
    read = read_rows(model, None, tokenizer, training_args, over_choices=signal.over_choices)
    with training_args.main_process_first(desc="tokenising"):
        features = tokenize_dataset(data.train, read.tokenize, num_proc=training_args.dataset_num_proc)
    ordered = RowOrder(features)
    layout = _layout(teacher, data, read.tokenize, training_args, cache_args)
    width = layout.vocabulary_size if layout.temperatures else 0
    tail_at = [2**i for i in range(width.bit_length()) if 2**i < width]
    given = Reading.of(training_args)
    rows = RowsIdentity(
        data.name,
        ordered.hash,
        len(features),
        tokenizer_hash(tokenizer),
        given.max_length,
        read.reading.max_length,
        given.apply_chat_template,
        given.add_eos,
    )
    manifest = Manifest(
        _identity(teacher, layout, data, training_args), rows, layout, tail_at=tail_at, versions=versions()
    )
    ranks = Ranks.of()
    with CacheWriter(folder, manifest, ordered, overwrite=cache_args.overwrite, ranks=ranks) as writer:
        before, started = writer.done, time.perf_counter()
        if not writer.manifest.complete:
            if before:
                say(f"Going on after {before} examples that are cached already")
            with progress(f"Caching {len(features)} examples of {data.name}") as on_progress:
                work = write_rows(writer, teacher, features, read.collate, training_args)
                in_step(work, ranks, training_args.device, lambda done: on_progress(before + done, len(features)))
        seconds = time.perf_counter() - started
        scorer = None
        if not writer.manifest.complete:
            size = source_size_bytes(str(training_args.teacher_model_name_or_path))
            scorer = Scorer(data, tokenizer, training_args, by_name=signal.over_choices)
            writer.finish(scorer.record(teacher.model, size) if cache_args.score_teacher else None)
        manifest = writer.manifest
    if signal.over_choices and scorer is not None and is_main_process():
        examine_cache(_examined(data), folder, scorer, training_args)
    objective = training_args.objective()
    coarse = objective.sinkhorn_weight > 0 and objective.vocabulary == "full" and not layout.names_all_ids
    warning = manifest.width_warning(objective.sinkhorn_temperature, training_args.cache_tolerance) if coarse else None
    return CacheResult(folder, manifest, before, seconds, warning)


def write_rows(
    writer: "CacheWriter", teacher: "LocalTeacher", features: "Dataset", collator: Any, args: "SinKDConfig"
) -> Iterator[int]:
    """
    Runs the teacher over the rows that the writer still wants of this process, `per_device_eval_batch_size` at a time.

    Yields:
        `int`: after each batch, how many rows are added.
    """
    before = writer.added
    for rows in writer.batches(args.per_device_eval_batch_size):
        columns = features[rows]
        batch = collator([dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)])
        batch = {name: x.to(args.device) if hasattr(x, "to") else x for name, x in batch.items()}
        supervised = teacher.supervised_rows(batch)
        writer.add(rows, supervised.logits_NV, supervised.example_N)
        yield writer.added - before


def _examined(data: RunData) -> RunData:
    """The rows that a teacher is examined on: all labelled ones, and of the others a sample that fits into memory."""
    from sinkd_llm.tasks.unlabelled import without_label

    unlabelled = without_label(data.train)
    others = np.flatnonzero(unlabelled)
    if len(others) <= _EXAMINED_WITHOUT_LABEL:
        return data
    drawn = np.random.default_rng(0).choice(others, _EXAMINED_WITHOUT_LABEL, replace=False)
    return replace(data, train=data.train.select(np.sort(np.concatenate([np.flatnonzero(~unlabelled), drawn]))))


def _folder(training_args: "SinKDConfig", cache_args: CacheArguments) -> Path:
    name = cache_args.output or training_args.teacher_cache
    if name is None:
        raise InputError("--output is missing: the folder of the cache (or 'teacher_cache: folder' in the recipe).")
    if not name.strip():
        raise InputError("--output is empty; give the folder of the cache.")
    folder = user_path("--output", name)
    check_path(f"--output {folder}", folder)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--output {folder} is a file; give a folder.")
    return folder


def _layout(
    teacher: "LocalTeacher", data: RunData, answer_tokenizer: Any, args: "SinKDConfig", cache_args: CacheArguments
) -> "CacheLayout":
    from sinkd_llm.inputs.answer_choices import choice_sets, verbalizer_ids
    from sinkd_llm.models.kinds import kind_of, output_size
    from sinkd_llm.teachers.cache.layout import OVER_CHOICES, CacheLayout, choose_temperatures

    model = teacher.model
    if teacher.over_choices:
        width = max(map(len, choice_sets(data.train)))
        return CacheLayout(OVER_CHOICES, width, width, (), "float32")
    outputs = output_size(model)
    size = cache_args.vocabulary_size or outputs
    if not 1 <= size <= outputs:
        raise InputError(f"vocabulary_size is {size}, but the teacher has {outputs} logits; give 1 to {outputs}.")
    if kind_of(model).scores_classes:
        # A handful of numbers; a regression's are predictions, of which a softmax would leave nothing.
        return CacheLayout("full", outputs, outputs, (), "float32")
    if cache_args.content == "full":
        return CacheLayout("full", size, size, (), cache_args.encoding or "float32")
    objective = args.objective()
    asked = (objective.temperature, objective.sinkhorn_temperature, objective.transported.transported_temperature)
    temperatures = choose_temperatures(*asked, more=cache_args.temperatures or ())
    always: tuple[int, ...] = ()
    if cache_args.content == "verbalizers" or objective.vocabulary == "verbalizers":
        always = tuple(verbalizer_ids(data.train, answer_tokenizer).tolist())
    k = len(always) if cache_args.content == "verbalizers" else cache_args.top_k
    return CacheLayout(cache_args.content, size, k, temperatures, cache_args.encoding or "fixed16", always)


def _identity(teacher: "LocalTeacher", layout: "CacheLayout", data: RunData, args: "SinKDConfig") -> "TeacherIdentity":
    from sinkd_llm.models.kinds import kind_of, output_size
    from sinkd_llm.models.kinds.class_heads import class_words
    from sinkd_llm.models.origin import commit_of
    from sinkd_llm.models.wrappers import unwrap
    from sinkd_llm.teachers.cache.identity import weights_hash
    from sinkd_llm.teachers.cache.manifest import TeacherIdentity

    model = teacher.model
    kind = kind_of(model)
    name, revision = str(args.teacher_model_name_or_path), args.teacher_model_revision
    loading = {"dtype": str(model.dtype)}
    if args.teacher_quantised is not None:
        loading["quantised"] = args.teacher_quantised
    if teacher.over_choices:
        loading |= {"choice_normalisation": args.choice_normalisation, **data.asked}
    # On the hub a branch moves; the commit that was loaded does not.
    commit = commit_of(unwrap(model))
    if commit is not None:
        loading["commit"] = commit
    return TeacherIdentity(
        name,
        revision,
        weights_hash(name, revision),
        kind.name,
        layout.vocabulary_size if teacher.over_choices else output_size(model),
        kind.scores_classes or teacher.over_choices,
        loading,
        (class_words(unwrap(model).config) or ()) if kind.scores_classes else None,
    )
