"""From rows to token ids: tokenisation of prompts and answers.

A row is a task example of this project (`id`, `prompt`, `completion`, `choices`, `label`) or one of TRL's
prompt-completion rows, plain or conversational. It becomes token ids of its prompt and of its answers,
whichever kind of model will read them; the collator (`collator.py`) lays them out for the kind.
"""

import inspect
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sinkd_llm.errors import InputError, first_line
from sinkd_llm.files import cache_dir
from sinkd_llm.inputs.answer_choices import (
    check_choice_tokens,
    choice_sets,
    class_names,
    rows_of_choices,
    verbalizer_ids,
)
from sinkd_llm.inputs.reading import Reading
from sinkd_llm.inputs.row_checks import Row, checked_row, row_name

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

__all__ = ["AnswerTokenizer", "choice_sets", "class_names", "tokenize_dataset", "verbalizer_ids"]

logger = logging.getLogger(__name__)

# Fewer rows are tokenised in a second.
CACHED_FROM = 5_000


@dataclass(frozen=True)
class AnswerTokenizer:
    """
    Turns a row into `prompt_ids` and the token ids of its answer or answers, which continue the prompt.

    Other kinds of model read rows in other ways: see `row_tokenizers.py`.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): the tokenizer that both models share.
        reading ([`Reading`], *optional*): how rows become tokens.
    """

    tokenizer: "PreTrainedTokenizerBase"
    reading: Reading = field(default_factory=Reading)

    def features(self, rows: Sequence[Row], start: int = 0, *, ranking: bool = False) -> list[Row]:
        """
        Tokenises rows with one call of the tokenizer.

        Args:
            rows (`Sequence[dict]`): the rows.
            start (`int`, *optional*, defaults to `0`): number of the first row, to name those without an id.
            ranking (`bool`, *optional*, defaults to `False`): all choices instead of the gold answer.

        Returns:
            `list[dict]`: for each row `example_id`, `prompt_ids`, `num_cut` (the prompt tokens that were cut),
            and `answer_ids`, or `answers_ids` (one list per choice) and `label`.

        Raises:
            InputError: see [`tokenize_dataset`].
        """
        names, rows = checked_rows(rows, start)
        texts = [
            self._texts(row, list(row["choices"]) if ranking else [row["completion"]], name)
            for row, name in zip(rows, names, strict=True)
        ]
        features = []
        for row, name, texts_of_row, encoded in zip(rows, names, texts, self._encode_rows(rows, texts), strict=True):
            prompt_ids, answers_ids = encoded
            eos_ids = self._eos_ids(row)
            for answer, answer_ids in zip(texts_of_row[1], answers_ids, strict=True):
                if not answer_ids:
                    raise InputError(
                        f"{name} has an answer without tokens ({answer!r}); every answer needs some text."
                    )
                answer_ids += eos_ids
            prompt_ids, num_cut = self._fit(row, prompt_ids, max(map(len, answers_ids)), name)
            feature = {"example_id": name, "prompt_ids": prompt_ids, "num_cut": num_cut}
            if ranking:
                feature |= {"label": row["label"], "answers_ids": answers_ids}
            else:
                feature["answer_ids"] = answers_ids[0]
            features.append(feature)
        return features

    def prompts(self, rows: Sequence[Row], start: int = 0) -> list[list[int]]:
        """`prompt_ids` of rows whose answers are yet to be written, without so many first tokens that they fit."""
        names, rows = checked_rows(rows, start)
        texts = [self._texts(row, [], name)[0] for row, name in zip(rows, names, strict=True)]
        encoded = zip(rows, self._encode(texts), names, strict=True)
        return [self._fit(row, prompt_ids, 0, name)[0] for row, prompt_ids, name in encoded]

    def choice_ids(self, rows: Sequence[Row], start: int = 0) -> list[list[list[int]]]:
        """The token ids of each row's choices, as they follow its prompt, whatever its label and length."""
        names, rows = checked_rows([{**row, "label": 0} for row in rows], start)
        texts = [self._texts(row, row["choices"], name) for row, name in zip(rows, names, strict=True)]
        encoded = zip(rows, self._encode_rows(rows, texts), strict=True)
        return [[ids + self._eos_ids(row) for ids in answers_ids] for row, (_, answers_ids) in encoded]

    def cut_place(self, columns: Sequence[str]) -> str:
        """Where rows with these columns lose what is too long, in words."""
        return "their beginning"

    def check_choices(self, choice_sets: set[tuple[str, ...]], rows: Sequence[Row]) -> None:
        """
        Refuses choices that the kind cannot tell apart.

        Args:
            choice_sets (`set[tuple[str, ...]]`): the different lists of choices of a data set.
            rows (`Sequence[dict]`): some of its rows, see [`rows_of_choices`].

        Raises:
            InputError: if all rows have the same choices and two of them are the same tokens, as they follow a prompt.
                Where the rows have their own choices, a warning counts those.
        """
        check_choice_tokens(choice_sets, rows, self)

    def _encode_rows(
        self, rows: Sequence[Row], texts: Sequence[tuple[str, list[str]]]
    ) -> list[tuple[list[int], list[list[int]]]]:
        """The token ids of each row's prompt and answers, without special tokens."""
        prompts_ids = self._encode([prompt for prompt, _ in texts])
        wholes_ids = iter(self._encode([prompt + answer for prompt, answers in texts for answer in answers]))
        # No token crosses the boundary in most vocabularies: the answer is what continues the prompt.
        return [
            (
                prompt_ids,
                [
                    whole[len(prompt_ids) :] if whole[: len(prompt_ids)] == prompt_ids else self._encode([answer])[0]
                    for answer, whole in zip(answers, wholes_ids, strict=False)
                ],
            )
            for (_, answers), prompt_ids in zip(texts, prompts_ids, strict=True)
        ]

    def encode_answers(self, answers: list[str]) -> list[list[int]]:
        """The token ids of answers on their own, without special tokens."""
        return self._encode(answers)

    def _templated(self, row: Row) -> bool:
        return self.reading.apply_chat_template or not isinstance(row["prompt"], str)

    def _texts(self, row: Row, answers: list[Any], name: str) -> tuple[str, list[str]]:
        """Prompt and answers as text, a conversation rendered by the chat template."""
        prompt = row["prompt"]
        if not self._templated(row):
            # White space at the prompt's end is part of the answer's first token in most vocabularies.
            stripped = prompt.rstrip()
            return stripped, [prompt[len(stripped) :] + answer for answer in answers]
        if not self.tokenizer.chat_template:
            raise InputError(
                f"{name} is a conversation, or apply_chat_template is set, but the tokenizer has no chat "
                "template; use a chat model's tokenizer or plain text rows."
            )
        if isinstance(prompt, str):
            turn = [{"role": "user", "content": prompt}]
            # The delimiter belongs to running text; an assistant's turn starts with the answer.
            rendered = self._render(turn, name, add_generation_prompt=True)
            return rendered, [answer.lstrip() for answer in answers]
        rendered = self._render(prompt, name, add_generation_prompt=True)
        wholes = [self._render(prompt + answer, name) for answer in answers]
        if not all(whole.startswith(rendered) for whole in wholes):
            raise InputError(
                f"The chat template renders {name} so that the prompt is not the beginning of prompt and answer; "
                "use a template that only appends turns."
            )
        return rendered, [whole[len(rendered) :] for whole in wholes]

    def _render(self, messages: list[dict[str, Any]], name: str, add_generation_prompt: bool = False) -> str:
        try:
            text = self.tokenizer.apply_chat_template(
                messages, add_generation_prompt=add_generation_prompt, tokenize=False
            )
        except Exception as error:  # a template is a small program, and says by an exception what it refuses
            roles = ", ".join(message["role"] for message in messages[:8])
            raise InputError(
                f"The tokenizer's chat template refuses {name} ({first_line(error)}), whose turns are {roles}; "
                "give the turns that it takes (many take no system turn, and a user's and an assistant's by turns), "
                "or another chat template."
            ) from error
        return str(text)

    def _encode(self, texts: list[str]) -> list[list[int]]:
        # Special tokens are put in by `_fit` and `_eos_ids`, or written out by the chat template.
        return self.tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []

    def _eos_ids(self, row: Row) -> list[int]:
        add_eos = self.reading.add_eos
        if add_eos is None:
            add_eos = not self._templated(row) and "choices" not in row
        if add_eos and self.tokenizer.eos_token_id is None:
            raise InputError(
                "The tokenizer has no end-of-sequence token to close the answers with; set add_eos to false, or give "
                "the tokenizer one (tokenizer.eos_token)."
            )
        return [self.tokenizer.eos_token_id] if add_eos else []

    def _fit(self, row: Row, prompt_ids: list[int], answer_length: int, name: str) -> tuple[list[int], int]:
        """The prompt with its begin token, without so many of its first tokens that the answer fits."""
        prefix = [] if self._templated(row) else bos_ids(self.tokenizer)
        if not prefix and not prompt_ids:
            # Something has to stand where the first answer token is predicted.
            first = self.tokenizer.bos_token_id
            first = self.tokenizer.eos_token_id if first is None else first
            if first is None:
                raise InputError(
                    f"The prompt of {name} is empty, and the tokenizer has no begin or end token to stand there; give "
                    "a prompt of at least one token."
                )
            prefix = [first]
        max_length = self.reading.max_length
        if max_length is None or len(prefix) + len(prompt_ids) + answer_length <= max_length:
            return prefix + prompt_ids, 0
        room = max_length - answer_length - len(prefix)
        if room < 1:
            raise InputError(
                f"The answer of {name} has {answer_length} tokens and leaves no room for a prompt in "
                f"{max_length}; raise max_length or shorten the answer."
            )
        return prefix + prompt_ids[-room:], len(prompt_ids) - room


def bos_ids(tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """The begin-of-sequence token, where the tokenizer puts one before a text by itself."""
    ids = tokenizer("")["input_ids"]
    bos = tokenizer.bos_token_id
    return [bos] if bos is not None and ids[:1] == [bos] else []


def checked_rows(rows: Sequence[Row], start: int) -> tuple[list[str], list[Row]]:
    """The rows' names, their ids or numbers from `start`, and the rows as [`checked_row`] gives them."""
    names = [row_name(row, start + i) for i, row in enumerate(rows)]
    return names, [checked_row(row, name) for row, name in zip(rows, names, strict=True)]


def tokenize_dataset(
    dataset: "Dataset",
    answer_tokenizer: AnswerTokenizer,
    *,
    ranking: bool = False,
    num_proc: int | None = None,
) -> "Dataset":
    """
    Tokenises every row of a data set, once.

    Args:
        dataset ([`~datasets.Dataset`]): rows of a task or prompt-completion rows. A data set that has
            the features already, and no `prompt`, is returned as it is.
        answer_tokenizer ([`AnswerTokenizer`]): how.
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
    answer_tokenizer: AnswerTokenizer,
    *,
    ranking: bool = False,
    num_proc: int | None = None,
    keep: bool = True,
) -> "Dataset":
    """As [`tokenize_dataset`], with the column `num_cut`; `keep` on disk for the next run, where rows are many."""
    columns = dataset.column_names
    missing = {"prompt", "completion"} - set(columns)
    if missing:
        raise InputError(
            f"The data set has the columns {sorted(columns)}, but not {sorted(missing)}. Give rows with "
            "`prompt` and `completion` (TRL's prompt-completion format), or load a task with "
            "`load_task(name).load(split)`."
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


def _cache_file(dataset: "Dataset", answer_tokenizer: AnswerTokenizer, ranking: bool) -> str | None:
    """
    Where the features of many rows are kept for the next run, under a name of everything that they depend on.

    `datasets` caches by itself only what lies in files, and rows of a task lie in memory.
    """
    from datasets.fingerprint import Hasher

    if len(dataset) < CACHED_FROM:
        return None
    # The classes are hashed by name, so their code goes in as well.
    modules = {c.__module__ for c in type(answer_tokenizer).__mro__ if c.__module__.startswith("sinkd_llm")}
    code = [inspect.getsource(sys.modules[name]) for name in sorted(modules)]
    key = Hasher.hash([dataset._fingerprint, answer_tokenizer, ranking, code])
    folder = cache_dir() / "tokenised"
    folder.mkdir(parents=True, exist_ok=True)
    return str(folder / f"{key}.arrow")
