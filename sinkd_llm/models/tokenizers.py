"""Tokenizers: loading them ready for padded batches, and telling whether two are the same."""

import functools
import logging
import re
from pathlib import Path
from typing import Any

from sinkd_llm.errors import InputError
from sinkd_llm.library_errors import is_memory_full
from sinkd_llm.models.foreign import fetch_adapter, hub_error, what_was_said
from sinkd_llm.models.gguf import converted_tokenizer
from sinkd_llm.models.names import (
    ADAPTER_CONFIG,
    BASE_FOLDER,
    ModelSource,
    resolve_model_source,
)
from sinkd_llm.models.stored_config import CONFIG, check_tokenizer_files, read_json
from sinkd_llm.models.wrappers import unwrap
from sinkd_llm.quiet import quiet_transformers

logger = logging.getLogger(__name__)


class NoTokenizerError(InputError):
    """There is no tokenizer where one was looked for. One that is there and cannot be read is another `InputError`."""


_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "source.spm",
)


def load_tokenizer(name_or_path: str | Path, *, revision: str = "main", trust_remote_code: bool = False) -> Any:
    """
    Loads a model's tokenizer, with a pad token and padding on the side that the model needs.

    Args:
        name_or_path (`str` or `Path`): what [`load_model`] takes; an adapter folder without a tokenizer
            of its own uses its base's.
        revision (`str`, *optional*, defaults to `"main"`): branch, tag or commit of a hub repository.
        trust_remote_code (`bool`, *optional*, defaults to `False`): run a tokenizer class that comes
            with the model.

    Returns:
        `PreTrainedTokenizerBase`: it pads on the left for a decoder, which goes on writing at the end, and on the
        right for an encoder or an encoder-decoder, whose absolute positions need it. For a GGUF file, and where the
        model's configuration cannot be read, it pads on the left. Without a pad token of its own it pads with its
        end-of-sequence token; padding is masked, so which token it is changes no result.

    Raises:
        NoTokenizerError: if the source holds no tokenizer at all.
        InputError: if the source is wrong (see [`resolve_model_source`]), or its tokenizer cannot be read or used.
    """
    from transformers import AutoTokenizer

    model_source = fetch_adapter(resolve_model_source(name_or_path, revision))
    source = _with_tokenizer(model_source)
    path = str(converted_tokenizer(source)) if source.gguf_file else source.path
    if source.kind != "hub":
        check_tokenizer_files(Path(path))
    try:
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(
                path,
                revision=source.revision,
                trust_remote_code=trust_remote_code,
                padding_side="left" if _pads_left(model_source, trust_remote_code) else "right",
            )
    except InputError:
        raise
    except Exception as error:  # the tokenizers package raises no type of its own
        if is_memory_full(error):
            raise
        if source.kind == "hub":
            if not _has_tokenizer_on_hub(source):
                raise NoTokenizerError(f"{source.name!r} on the model hub holds a model but no tokenizer.") from error
            raise hub_error(source, error) from error
        raise InputError(
            f"The tokenizer in {path} cannot be read ({what_was_said(error)}). Save it there again "
            "with the tokenizer's save_pretrained."
        ) from error
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise InputError(
                f"The tokenizer of {source.name!r} has neither a pad nor an end-of-sequence token. "
                "Load it with Transformers, set pad_token, and save it to the model's folder."
            )
        _say_once(
            f"The tokenizer of {source.name!r} has no pad token: padding with its end-of-sequence "
            f"token {tokenizer.eos_token!r}."
        )
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.name_or_path = source.name
    return tokenizer


def _pads_left(source: ModelSource, trust_remote_code: bool) -> bool:
    """Whether the model needs padding on the left; true where that cannot be told."""
    from transformers import AutoConfig

    from sinkd_llm.models.kinds.choose import pads_left
    from sinkd_llm.models.loading import adapter_base

    if source.gguf_file:  # to ask it takes as long as to convert it, and nearly all are decoders
        return True
    try:
        if source.kind == "adapter":
            base, revision, _ = adapter_base(source)
            return _pads_left(fetch_adapter(resolve_model_source(base, revision)), trust_remote_code)
        with quiet_transformers():
            config = AutoConfig.from_pretrained(
                source.path, revision=source.revision, trust_remote_code=trust_remote_code
            )
    except Exception as error:  # a tokenizer may be read where its model cannot, and that is said with the model
        if is_memory_full(error):
            raise
        return True
    return pads_left(config)


@functools.cache
def _say_once(message: str) -> None:
    logger.warning(message)


def _has_tokenizer_on_hub(source: ModelSource) -> bool:
    """Whether a repository that can be read has any of a tokenizer's files; true where that cannot be told."""
    from transformers.utils import cached_file

    try:
        if cached_file(source.path, CONFIG, revision=source.revision) is None:
            return True
        return any(
            cached_file(source.path, name, revision=source.revision, _raise_exceptions_for_missing_entries=False)
            for name in _TOKENIZER_FILES
        )
    except (OSError, ValueError):
        return True


def _with_tokenizer(source: ModelSource) -> ModelSource:
    """`source`, or the base of an adapter that was saved without its tokenizer."""
    if source.kind not in ("folder", "adapter"):
        return source
    folder = Path(source.path)
    if any((folder / name).is_file() for name in _TOKENIZER_FILES):
        return source
    if source.kind == "adapter" and not (folder / BASE_FOLDER).is_dir():
        config = read_json(folder / ADAPTER_CONFIG)
        if base := config.get("base_model_name_or_path"):
            revision = config.get("revision") or "main"
            return _with_tokenizer(fetch_adapter(resolve_model_source(base, revision)))
    raise NoTokenizerError(
        f"{folder} holds a model but no tokenizer. Copy the tokenizer's files there "
        "(tokenizer.json and tokenizer_config.json), or save it with its save_pretrained."
    )


def check_vocabulary(model: Any, tokenizer: Any, name: str) -> None:
    """
    Makes sure that a model has an embedding for every token that its tokenizer can give.

    Special tokens beyond the embeddings pass, as long as nothing here uses them: text never gives them.

    Args:
        model (`PreTrainedModel`): possibly wrapped.
        tokenizer (`PreTrainedTokenizerBase`): what its texts are read with.
        name (`str`): of the model, for the message.

    Raises:
        InputError: naming the first token that the model does not have.
    """
    embeddings = unwrap(model).get_input_embeddings()
    rows = getattr(embeddings, "num_embeddings", None)
    if rows is None:  # an embedding of the model's own kind
        return
    ours = ("pad_token_id", "bos_token_id", "eos_token_id", "unk_token_id", "sep_token_id", "cls_token_id")
    used = {index for key in (*ours, "mask_token_id") if (index := getattr(tokenizer, key, None)) is not None}
    ignored = _added_ids(tokenizer) - used
    if missing := sorted(i for i in (*used, *_by_id(tokenizer)) if i >= rows and i not in ignored):
        raise InputError(
            f"{name!r} has embeddings for {rows} tokens, but its tokenizer gives {len(tokenizer)}, the first too many "
            f"of them {tokenizer.convert_ids_to_tokens(missing[0])!r} (id {missing[0]}): they are of different "
            "models, or the model was not resized when tokens were added. Give the tokenizer it was trained with, or "
            "call resize_token_embeddings and save the model again."
        )


# Texts on which tokenizers of one vocabulary but other rules (merges, digits, spaces, accents) differ.
_PROBES = (
    "Review: it isn't a great film\nSentiment: negative",
    "  two spaces, a\ttab, 3.14159 and 1024 %",
    "Él preguntó: «¿naïve café?» — 東京は晴れ 🙂",
    "def f(x):\n    return x_1 != 0\n\n",
)
_PLACEHOLDER = re.compile(r"reserved|unused|placeholder|extra_id", re.IGNORECASE)


def check_same_tokenizer(teacher_tokenizer: Any, student_tokenizer: Any) -> None:
    """
    Makes sure that token ids mean the same to teacher and student.

    Ids that both know must be the same token, and a few probe texts must give the same ids. Special
    tokens that only one of them has after the end of the other's vocabulary are accepted (text never
    gives them), and so are reserved ids that only one of them has named. How far a model pads its
    embedding matrix plays no role.

    Raises:
        InputError: with the first difference.
    """
    if teacher_tokenizer is student_tokenizer:
        return
    teacher, student = _by_id(teacher_tokenizer), _by_id(student_tokenizer)
    teacher_special, student_special = _added_ids(teacher_tokenizer), _added_ids(student_tokenizer)
    refusal = (
        "Teacher and student must share one tokenizer, because the loss compares their probabilities "
        "token by token. Choose two models with one tokenizer, or rows with answer choices and signal choices."
    )
    for index in sorted(teacher.keys() & student.keys()):
        ours, theirs = student[index], teacher[index]
        if ours == theirs:
            continue
        both_special = index in teacher_special and index in student_special
        if not (both_special and (_PLACEHOLDER.search(ours) or _PLACEHOLDER.search(theirs))):
            raise InputError(
                f"Teacher and student have different tokenizers: token {index} is {theirs!r} to the "
                f"teacher and {ours!r} to the student. {refusal}"
            )
    for who, extra in (
        ("teacher", teacher.keys() - student.keys() - teacher_special),
        ("student", student.keys() - teacher.keys() - student_special),
    ):
        if extra:
            first = min(extra)
            token = (teacher if who == "teacher" else student)[first]
            raise InputError(
                f"Teacher and student have different tokenizers: only the {who} knows {len(extra)} "
                f"tokens, the first of them {token!r} (id {first}). {refusal}"
            )
    for text in _PROBES:
        theirs = teacher_tokenizer(text, add_special_tokens=False)["input_ids"]
        ours = student_tokenizer(text, add_special_tokens=False)["input_ids"]
        if theirs != ours:
            raise InputError(
                "Teacher and student have different tokenizers: their vocabularies agree, but the "
                f"teacher splits {text!r} into {theirs} and the student into {ours}. {refusal}"
            )


def _by_id(tokenizer: Any) -> dict[int, str]:
    return {index: token for token, index in tokenizer.get_vocab().items()}


def _added_ids(tokenizer: Any) -> set[int]:
    return set(tokenizer.added_tokens_decoder)
