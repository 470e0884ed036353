"""From rows to batches: tokenisation of prompts and answers, and the collator.

A row is a task example of this project (`id`, `prompt`, `completion`, `choices`, `label`) or one of TRL's
prompt-completion rows, plain or conversational. It becomes token ids of its prompt and of its answers,
whichever family of model will read them; the collator lays them out for the family.

Shapes: B examples, S sequences, L tokens, C choices, T tokens of the longest answer.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from sinkd_llm.errors import InputError
from sinkd_llm.models.architectures import IGNORE_INDEX

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

Row = dict[str, Any]


@dataclass(frozen=True)
class AnswerTokenizer:
    """
    Turns a row into `prompt_ids` and the token ids of its answer or answers.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): the tokenizer that both models share.
        max_length (`int` or `None`, *optional*): longest sequence, prompt and answer together.
        apply_chat_template (`bool`, *optional*, defaults to `False`): render plain prompts as a user's
            turn. Conversational rows always are.
        add_eos (`bool`, *optional*): supervise the end-of-sequence token after the answer. Default:
            yes for plain prompt-completion rows, no for rows with choices and for conversational rows,
            whose template closes the turn.
    """

    tokenizer: "PreTrainedTokenizerBase"
    max_length: int | None = None
    apply_chat_template: bool = False
    add_eos: bool | None = None

    def training_features(self, row: Row, index: int) -> Row:
        """`example_id`, `prompt_ids`, `answer_ids` and `num_cut`, the prompt tokens that were cut."""
        name = labelled_row_name(row, index)
        prompt, (answer,) = self._texts(row, [row["completion"]], name)
        prompt_ids, (answer_ids,) = self._encode(prompt, [answer], row, name)
        prompt_ids, num_cut = self._cut(prompt_ids, len(answer_ids), name)
        return {
            "example_id": name,
            "prompt_ids": prompt_ids,
            "answer_ids": answer_ids,
            "num_cut": num_cut,
        }

    def ranking_features(self, row: Row, index: int) -> Row:
        """`example_id`, `prompt_ids`, `answers_ids` (one list per choice), `label` and `num_cut`."""
        name = labelled_row_name(row, index)
        prompt, answers = self._texts(row, list(row["choices"]), name)
        prompt_ids, answers_ids = self._encode(prompt, answers, row, name)
        prompt_ids, num_cut = self._cut(prompt_ids, max(map(len, answers_ids)), name)
        return {
            "example_id": name,
            "label": row["label"],
            "prompt_ids": prompt_ids,
            "answers_ids": answers_ids,
            "num_cut": num_cut,
        }

    def _texts(self, row: Row, answers: list[Any], name: str) -> tuple[str, list[str]]:
        """Prompt and answers as text, a conversation rendered by the chat template."""
        prompt = row["prompt"]
        conversational = not isinstance(prompt, str)
        if not conversational and not self.apply_chat_template:
            return prompt, answers
        if not self.tokenizer.chat_template:
            raise InputError(
                f"{name} is a conversation, or apply_chat_template is set, but the tokenizer has no chat "
                "template; use a chat model's tokenizer or plain text rows."
            )
        if not conversational:
            turn = [{"role": "user", "content": prompt}]
            rendered = self._render(turn, add_generation_prompt=True)
            # The delimiter belongs to running text; an assistant's turn starts with the answer.
            return rendered, [answer.lstrip() for answer in answers]
        rendered = self._render(prompt, add_generation_prompt=True)
        texts = []
        for answer in answers:
            whole = self._render(prompt + answer)
            if not whole.startswith(rendered):
                raise InputError(
                    f"The chat template renders {name} so that the prompt is not the beginning of prompt "
                    "and answer; use a template that only appends turns."
                )
            texts.append(whole[len(rendered) :])
        return rendered, texts

    def _render(self, messages: list[dict[str, str]], add_generation_prompt: bool = False) -> str:
        text = self.tokenizer.apply_chat_template(
            messages, add_generation_prompt=add_generation_prompt, tokenize=False
        )
        return str(text)

    def _encode(self, prompt: str, answers: list[str], row: Row, name: str) -> tuple[list[int], list[list[int]]]:
        """Token ids of the prompt and of each answer *as it continues the prompt*."""
        templated = self.apply_chat_template or not isinstance(row["prompt"], str)
        # White space at the prompt's end is part of the answer's first token in most vocabularies.
        stripped = prompt.rstrip()
        answers = [prompt[len(stripped) :] + answer for answer in answers] if not templated else answers
        prompt = stripped if not templated else prompt
        prefix = [] if templated else bos_ids(self.tokenizer)

        def encode(text: str) -> list[int]:
            # The template of a chat model writes its own special tokens.
            return self.tokenizer(text, add_special_tokens=False)["input_ids"]

        prompt_ids = encode(prompt)
        if not prefix and not prompt_ids:
            # Something has to stand where the first answer token is predicted.
            prefix = [self.tokenizer.bos_token_id or self.tokenizer.eos_token_id]
        add_eos = self.add_eos
        if add_eos is None:
            add_eos = not templated and "choices" not in row
        eos_ids = [self.tokenizer.eos_token_id] if add_eos else []
        answers_ids = []
        for answer in answers:
            whole = encode(prompt + answer)
            continues = whole[: len(prompt_ids)] == prompt_ids  # no token crosses the boundary
            answer_ids = whole[len(prompt_ids) :] if continues else encode(answer)
            if not answer_ids:
                raise InputError(f"{name} has an answer without tokens ({answer!r}); every answer needs some text.")
            answers_ids.append(answer_ids + eos_ids)
        return prefix + prompt_ids, answers_ids

    def _cut(self, prompt_ids: list[int], answer_length: int, name: str) -> tuple[list[int], int]:
        """The prompt without so many of its first tokens that the answer fits."""
        if self.max_length is None or len(prompt_ids) + answer_length <= self.max_length:
            return prompt_ids, 0
        prefix = bos_ids(self.tokenizer)
        prefix = prefix if prompt_ids[: len(prefix)] == prefix else []
        room = self.max_length - answer_length - len(prefix)
        if room < 1:
            raise InputError(
                f"The answer of {name} has {answer_length} tokens and leaves no room for a prompt in "
                f"{self.max_length}; raise max_length or shorten the answer."
            )
        kept = prompt_ids[-room:]
        return prefix + kept, len(prompt_ids) - len(prefix) - len(kept)


def bos_ids(tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """The begin-of-sequence token, where the tokenizer puts one in front of a text by itself."""
    ids = tokenizer("")["input_ids"]
    bos = tokenizer.bos_token_id
    return [bos] if bos is not None and ids[:1] == [bos] else []


def labelled_row_name(row: Row, index: int) -> str:
    """The example's own id, or its number; refuses a row without a label."""
    name = str(row["id"]) if row.get("id") is not None else f"row {index}"
    if row.get("label", 0) == -1:
        raise InputError(
            f"{name} has no label (-1), as in the test splits of GLUE and SuperGLUE; use a labelled split."
        )
    return name


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
            `prompt_ids` already is returned as it is.
        answer_tokenizer ([`AnswerTokenizer`]): how.
        ranking (`bool`, *optional*, defaults to `False`): prepare all choices of a row, for evaluation,
            instead of the gold answer alone. Rows without choices are prepared for training.
        num_proc (`int`, *optional*): processes.

    Returns:
        [`~datasets.Dataset`]: features for [`AnswerCollator`].

    Raises:
        InputError: for an empty data set, missing columns, an unlabelled row, an answer without tokens
            or longer than `max_length`, and one-word choices that share their first token.
    """
    columns = dataset.column_names
    if "prompt_ids" in columns:
        return dataset
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
        check_verbalizers({tuple(row) for row in dataset["choices"]}, answer_tokenizer)
    ranking = ranking and has_choices
    features = dataset.map(
        answer_tokenizer.ranking_features if ranking else answer_tokenizer.training_features,
        with_indices=True,
        remove_columns=columns,
        num_proc=num_proc,
        desc="Tokenising",
    )
    cut = [count for count in features["num_cut"] if count]
    if cut:
        logger.warning(
            "%d of %d prompts were longer than max_length=%d and lost %d tokens at their beginning "
            "(%d at most); no answer was cut.",
            len(cut),
            len(features),
            answer_tokenizer.max_length,
            sum(cut),
            max(cut),
        )
    return features.remove_columns("num_cut")


def check_verbalizers(choice_sets: set[tuple[str, ...]], answer_tokenizer: AnswerTokenizer) -> None:
    """
    Refuses one-word choices that begin with the same token.

    The first answer token is where most of the teacher's knowledge lies; two words that share it cannot
    be told apart there.

    Raises:
        InputError: naming the words and the shared token.
    """
    for choices in choice_sets:
        first: dict[int, str] = {}
        for choice in choices:
            word = choice.strip()
            if not word or any(character.isspace() for character in word):
                continue
            text = word if answer_tokenizer.apply_chat_template else choice
            token = answer_tokenizer.tokenizer(text, add_special_tokens=False)["input_ids"][0]
            if token in first:
                shared = answer_tokenizer.tokenizer.decode([token])
                raise InputError(
                    f"The choices {first[token]!r} and {word!r} begin with the same token {shared!r} in this "
                    "tokenizer, so the first answer token cannot tell them apart; choose other words in "
                    "doc_to_choice."
                )
            first[token] = word


def verbalizer_ids(dataset: "Dataset", answer_tokenizer: AnswerTokenizer) -> torch.Tensor:
    """
    Sorted ids of all tokens of the answer choices, for `vocabulary="verbalizers"`: `[K]`.

    Raises:
        InputError: if the rows have no choices, or not the same ones.
    """
    if "choices" not in dataset.column_names:
        raise InputError(
            'vocabulary="verbalizers" needs rows with answer choices, but the data set has none; use '
            'vocabulary="full".'
        )
    choice_sets = {tuple(choices) for choices in dataset["choices"]}
    if len(choice_sets) != 1:
        raise InputError(
            'vocabulary="verbalizers" needs the same answer choices in every row, but the data set has '
            f'{len(choice_sets)} different lists; use vocabulary="full".'
        )
    row = dataset[0]
    answers = answer_tokenizer.ranking_features({**row, "label": 0}, 0)["answers_ids"]
    return torch.tensor(sorted({token for answer in answers for token in answer}))


@dataclass(frozen=True)
class AnswerCollator:
    """
    Lays tokenised rows out as a batch for a decoder-only model: padded on the left, so that the answers
    of a batch end together and the head runs at few positions.

    Training rows give `input_ids`, `attention_mask`, `labels` `[B, L]` (-100 outside the answer) and
    `example_id`. Ranking rows give the same over S sequences, plus `label` `[B]`, `choice_ids`
    `[B, C, T]` (-100 beyond the answer) and `choice_sequence` `[B, C]`, the sequence in which a choice is
    scored (-1 where a row has fewer choices); `example_id` names the sequences. Choices that differ only in
    their last token share one sequence, so that single-token choices cost one forward a row.

    Args:
        pad_token_id (`int`): fills `input_ids`.
        pad_to_multiple_of (`int`, *optional*): rounds L up.
    """

    pad_token_id: int
    pad_to_multiple_of: int | None = None

    def __call__(self, features: Sequence[Row]) -> dict[str, Any]:
        if "answers_ids" in features[0]:
            return self._ranking_batch(features)
        return {
            **self._pad([(row["prompt_ids"], row["answer_ids"]) for row in features]),
            "example_id": [row["example_id"] for row in features],
        }

    def _ranking_batch(self, features: Sequence[Row]) -> dict[str, Any]:
        sequences: list[tuple[list[int], list[int]]] = []
        names: list[str] = []
        most = max(len(row["answers_ids"]) for row in features)
        longest = max(len(answer) for row in features for answer in row["answers_ids"])
        choice_ids = torch.full((len(features), most, longest), IGNORE_INDEX)
        choice_sequence = torch.full((len(features), most), -1)
        for b, row in enumerate(features):
            start = len(sequences)
            by_length = sorted(enumerate(row["answers_ids"]), key=lambda item: -len(item[1]))
            for c, answer in by_length:
                choice_ids[b, c, : len(answer)] = torch.tensor(answer)
                condition = answer[:-1]  # what the model must have read to score the choice
                for s in range(start, len(sequences)):
                    if sequences[s][1][: len(condition)] == condition:
                        break
                else:
                    s = len(sequences)
                    sequences.append((row["prompt_ids"], answer))
                    names.append(row["example_id"])
                choice_sequence[b, c] = s
        return {
            # First, for transformers.Trainer takes the batch size from the first tensor.
            "label": torch.tensor([row["label"] for row in features]),
            "choice_ids": choice_ids,
            "choice_sequence": choice_sequence,
            **self._pad(sequences),
            "example_id": names,
        }

    def _pad(self, sequences: Sequence[tuple[list[int], list[int]]]) -> dict[str, torch.Tensor]:
        length = max(len(prompt) + len(answer) for prompt, answer in sequences)
        if self.pad_to_multiple_of:
            length += -length % self.pad_to_multiple_of
        shape = (len(sequences), length)
        input_ids = torch.full(shape, self.pad_token_id)
        attention_mask = torch.zeros(shape, dtype=torch.long)
        labels = torch.full(shape, IGNORE_INDEX)
        for s, (prompt, answer) in enumerate(sequences):
            tokens = prompt + answer
            input_ids[s, length - len(tokens) :] = torch.tensor(tokens)
            attention_mask[s, length - len(tokens) :] = 1
            labels[s, length - len(answer) :] = torch.tensor(answer)
        return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}
