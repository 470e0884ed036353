"""From a data set to its features: every row tokenised once, many rows once for all runs."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sinkd_llm.errors import InputError
from sinkd_llm.files import cache_dir
from sinkd_llm.inputs.answer_choices import choice_sets, rows_of_choices
from sinkd_llm.inputs.contract import RowTokenizer

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

# Fewer rows are tokenised in a second.
CACHED_FROM = 5_000


def plain_rows(dataset: Any, argument: str = "The data set") -> Any:
    """
    The same rows as lists, texts and numbers of Python, whatever `with_format` asked for.

    A format of NumPy or PyTorch would add up lists of tokens that are to be joined.

    Args:
        dataset ([`~datasets.Dataset`] or `dict` of these, *optional*): anything else is returned as it is.
        argument (`str`, *optional*): what messages call it.

    Raises:
        InputError: for rows that a transform makes anew whenever they are read (`with_transform`).
    """
    if isinstance(dataset, Mapping):
        return {name: plain_rows(part, f"{argument}[{name!r}]") for name, part in dataset.items()}
    form = getattr(dataset, "format", None)
    kind = form.get("type") if isinstance(form, Mapping) else None
    if kind == "custom":
        raise InputError(
            f"{argument} has a transform (with_transform, set_transform), which makes its rows anew whenever they are "
            "read; apply it once with data.map(transform, batched=True), or take it off with data.with_format(None)."
        )
    return dataset if kind is None else dataset.with_format(None)


def tokenize_dataset(
    dataset: "Dataset",
    answer_tokenizer: RowTokenizer,
    *,
    ranking: bool = False,
    num_proc: int | None = None,
) -> "Dataset":
    """
    Tokenises every row of a data set, once.

    Args:
        dataset ([`~datasets.Dataset`]): rows of a task or prompt-completion rows. A data set that has
            the features already, and no `prompt`, is returned as it is.
        answer_tokenizer ([`RowTokenizer`]): how.
        ranking (`bool`, *optional*, defaults to `False`): prepare all choices of a row, for evaluation,
            instead of the gold answer alone. Rows without choices are prepared for training.
        num_proc (`int`, *optional*): processes.

    Returns:
        [`~datasets.Dataset`]: features for [`AnswerCollator`].

    Raises:
        InputError: for an empty data set, missing columns, a row that [`checked_row`] refuses, an answer without
            tokens or longer than `max_length`, and choices that are the same tokens.
    """
    columns = dataset.column_names
    if not isinstance(columns, list):
        raise InputError(
            f"The data set is {type(dataset).__name__}, not one table of rows; give one split of it, such as "
            "data['train']."
        )
    dataset = plain_rows(dataset)
    if "prompt_ids" in columns and not {"prompt", "completion"} & {*columns}:
        if not {"answer_ids", "answers_ids"} & {*columns}:
            raise InputError(
                f"The data set has the columns {sorted(columns)}: prompt_ids without answer_ids. Give rows with "
                "`prompt` and `completion`; they are tokenised here."
            )
        return dataset
    features = features_of(dataset, answer_tokenizer, ranking=ranking, num_proc=num_proc)
    cut = [count for count in features["num_cut"][:] if count]
    if cut:
        logger.warning(
            "%d of %d prompts were longer than max_length=%d and lost %d tokens at %s (%d at most); "
            "no answer was cut.",
            len(cut),
            len(features),
            answer_tokenizer.reading.max_length,
            sum(cut),
            answer_tokenizer.cut_place(columns),
            max(cut),
        )
    return features.remove_columns("num_cut")


def features_of(
    dataset: "Dataset",
    answer_tokenizer: RowTokenizer,
    *,
    ranking: bool = False,
    num_proc: int | None = None,
    keep: bool = True,
) -> "Dataset":
    """As [`tokenize_dataset`], with the column `num_cut`; `keep` on disk for the next run, where rows are many."""
    dataset = plain_rows(dataset)
    columns = dataset.column_names
    missing = {"prompt", "completion"} - set(columns)
    if missing:
        ways = "`load_task(name).load(split)` loads a task."
        if "messages" in columns:
            ways = (
                "Of conversations the last message is the completion: data.map(lambda row: {'prompt': "
                "row['messages'][:-1], 'completion': row['messages'][-1:]}, remove_columns='messages')."
            )
        raise InputError(
            f"The data set has the columns {sorted(columns)}, but not {sorted(missing)}. Give rows with "
            f"`prompt` and `completion` (TRL's prompt-completion format). {ways}"
        )
    if len(dataset) == 0:
        raise InputError("The data set has no rows; check the file, the split and the sample limit.")
    has_choices = "choices" in columns
    if has_choices:
        sets = choice_sets(dataset)
        answer_tokenizer.check_choices(sets, rows_of_choices(dataset, sets))
    ranking = ranking and has_choices

    def tokenize(batch: dict[str, list[Any]], indices: list[int]) -> dict[str, list[Any]]:
        rows = [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
        features = answer_tokenizer.features(rows, indices[0], ranking=ranking)
        return {key: [row[key] for row in features] for key in features[0]}

    return dataset.map(
        tokenize,
        batched=True,
        with_indices=True,
        remove_columns=columns,
        num_proc=num_proc,
        desc="Tokenising",
        cache_file_name=_cache_file(dataset, answer_tokenizer, ranking) if keep else None,
    )


def _cache_file(dataset: "Dataset", answer_tokenizer: RowTokenizer, ranking: bool) -> str | None:
    """
    Where the features of many rows are kept for the next run, under a name of everything that they depend on.

    `datasets` caches by itself only what lies in files, and rows of a task lie in memory.
    """
    from datasets.fingerprint import Hasher

    if len(dataset) < CACHED_FROM:
        return None
    # The classes are hashed by name, so the code of this folder goes in as well.
    code = [path.read_text(encoding="utf-8") for path in sorted(Path(__file__).parent.glob("*.py"))]
    key = Hasher.hash([dataset._fingerprint, answer_tokenizer, ranking, code])
    folder = cache_dir() / "tokenised"
    folder.mkdir(parents=True, exist_ok=True)
    return str(folder / f"{key}.arrow")
