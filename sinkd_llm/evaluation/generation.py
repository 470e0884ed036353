"""Free text: the answers that a model writes after each prompt, and how likely it finds the reference answers.

Shapes: B rows, L tokens of the longest prompt, T tokens generated so far, N supervised tokens of a batch,
V vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from sinkd_llm.errors import InputError, NonFiniteError
from sinkd_llm.evaluation.batches import batches_by_length, from_all, on_device
from sinkd_llm.evaluation.ranking import refuse_non_finite
from sinkd_llm.inputs.batch import AnswerCollator, left_padded, right_padded
from sinkd_llm.inputs.reading import Reading
from sinkd_llm.inputs.special_tokens import special_ids
from sinkd_llm.models.kinds import LOGITS_AT_A_TIME, context_length, decoder_input_ids, kind_of, output_size
from sinkd_llm.models.wrappers import unwrap

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

    from sinkd_llm.tasks import Task

# lm-evaluation-harness's defaults.
STOP_STRINGS = ("\n\n",)
MAX_NEW_TOKENS = 256
# How the harness's users call the number of tokens, and what does not touch the tokens.
_LENGTH_KEYS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
_OPTIONS = (
    *("do_sample", "temperature", "top_k", "top_p", "min_p", "typical_p", "num_beams", "length_penalty"),
    *("early_stopping", "repetition_penalty", "no_repeat_ngram_size", "min_new_tokens"),
)


@dataclass(frozen=True)
class GenerationSettings:
    """
    How a task's answers are generated.

    Args:
        stop_strings (`tuple[str, ...]`): an answer ends before the first of these.
        max_new_tokens (`int`): longest answer, at least 1.
        options (`dict`): of Transformers' `GenerationConfig`.
    """

    stop_strings: tuple[str, ...]
    max_new_tokens: int
    options: dict[str, Any]

    @classmethod
    def of(cls, task: "Task") -> "GenerationSettings":
        """
        The task's `generation_kwargs`, read as lm-evaluation-harness does: greedy, at most 256 tokens, up to an
        empty line, unless they say otherwise.

        Raises:
            InputError: for an unknown key or a value of the wrong type.
        """
        given = dict(task.config.get("generation_kwargs") or {})
        until = given.pop("until", STOP_STRINGS)
        stops = (until,) if isinstance(until, str) else tuple(until or ())
        lengths = [given.pop(key) for key in _LENGTH_KEYS if key in given]
        length = lengths[0] if lengths else MAX_NEW_TOKENS
        if unknown := sorted(given.keys() - set(_OPTIONS)):
            raise InputError(
                f"generation_kwargs of the task {task.name!r} has the key {unknown[0]!r}, which is not read here; "
                f"known keys: until, max_gen_toks, {', '.join(_OPTIONS)}."
            )
        if not all(isinstance(stop, str) and stop for stop in stops):
            raise InputError(f"generation_kwargs.until of the task {task.name!r} is {until!r}; give texts to stop at.")
        if not isinstance(length, int) or length < 1:
            raise InputError(
                f"generation_kwargs.max_gen_toks of the task {task.name!r} is {length!r}; give a number of tokens, 1 "
                "or more."
            )
        for key, value in given.items():
            if not isinstance(value, int | float):
                raise InputError(f"generation_kwargs.{key} of the task {task.name!r} is {value!r}; give a number.")
        temperature = given.get("temperature", 0)
        if temperature < 0 or (temperature == 0 and given.get("do_sample") and "temperature" in given):
            raise InputError(
                f"generation_kwargs.temperature of the task {task.name!r} is {temperature}, with which nothing can be "
                "sampled; give more than 0, or leave do_sample out."
            )
        if "temperature" in given:
            given["temperature"] = float(temperature)
        if not given.setdefault("do_sample", temperature > 0):
            for key in ("temperature", "top_k", "top_p", "min_p", "typical_p"):
                given.pop(key, None)  # of sampling
        return cls(stops, length, given)


def check_can_generate(model: "PreTrainedModel", task: "Task") -> None:
    """Refuses a model that writes no text."""
    kind = kind_of(model)
    if not kind.writes_text:
        raise InputError(
            f"The answers of the task {task.name!r} are generated, and {type(unwrap(model)).__name__} is "
            f"{kind.title}, which writes no text; give a decoder-only or encoder-decoder model, or a task with "
            "answer choices."
        )


def generate_answers(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Sequence[list[int]],
    settings: GenerationSettings,
    batch_size: int,
    on_progress: Callable[[int, int], None] | None = None,
    *,
    device: torch.device | None = None,
    share: bool = False,
) -> list[str]:
    """
    What the model answers to each prompt, without white space around it.

    Sampling, where the settings ask for it, has a seed of its own: it repeats, and disturbs no other random numbers.

    Args:
        model ([`~transformers.PreTrainedModel`]): decoder-only or encoder-decoder, in eval mode.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): its tokenizer.
        prompts (sequence of `list[int]`): token ids, as [`reading_of_prompts`] bounds them.
        settings ([`GenerationSettings`]): how.
        batch_size (`int`): rows that are generated together, which changes no greedy answer.
        on_progress (`Callable[[int, int], None]`, *optional*): called with rows done and rows in all.
        device, share: as in [`evaluate_task`].

    Raises:
        NonFiniteError: if the model's logits are NaN or infinite.
    """
    decoder_only = kind_of(model).continues_prompt
    texts: dict[int, str] = {}
    inner: Any = unwrap(model)
    with torch.random.fork_rng(devices=_devices(model)), _generation_config(inner, tokenizer, settings) as config:
        torch.manual_seed(0)
        for chosen in batches_by_length([len(ids) for ids in prompts], batch_size, on_progress, share=share):
            batch = on_device(
                _prompt_batch([prompts[i] for i in chosen], tokenizer, decoder_only), device or model.device
            )
            if not decoder_only:
                # What training puts before an answer without teaching it.
                before = [*special_ids(tokenizer, target=True)[0], tokenizer.pad_token_id]
                targets_BT = batch["input_ids"].new_tensor([before] * len(chosen))
                batch["decoder_input_ids"] = decoder_input_ids(model, targets_BT)
            start = batch["input_ids" if decoder_only else "decoder_input_ids"].shape[1]
            stop = StoppingCriteriaList([StopAtStrings(tokenizer, settings.stop_strings, start)])
            check = LogitsProcessorList([FiniteLogits()])
            tokens_BT = inner.generate(
                **batch, generation_config=config, stopping_criteria=stop, logits_processor=check
            )[:, start:]
            for i, text in zip(chosen, tokenizer.batch_decode(tokens_BT, skip_special_tokens=True), strict=True):
                texts[i] = cut_at(text, settings.stop_strings).strip()
    texts = from_all(texts, share)
    return [texts[i] for i in range(len(prompts))]


def cut_at(text: str, stop_strings: Sequence[str]) -> str:
    """The text before the first of the stop strings."""
    places = [text.find(stop) for stop in stop_strings]
    return text[: min((place for place in places if place >= 0), default=len(text))]


class StopAtStrings(StoppingCriteria):
    """
    Ends a row when its generated text holds a stop string.

    Transformers' own criterion looks at the last tokens of the whole sequence, so that a string which begins in the
    prompt ends an answer before its first word.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", stop_strings: Sequence[str], start: int) -> None:
        self.tokenizer, self.stop_strings, self.start = tokenizer, stop_strings, start
        # A token stands for a byte at least, so the last tokens hold whatever the newest one has completed.
        self.window = max((len(stop.encode()) for stop in stop_strings), default=0) + 1

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Any:
        answers_BT = input_ids[:, self.start :]
        tails = self.tokenizer.batch_decode(answers_BT[:, -self.window :], skip_special_tokens=True)
        done = [any(stop in tail for stop in self.stop_strings) for tail in tails]
        return torch.tensor(done, device=input_ids.device)


class FiniteLogits(LogitsProcessor):
    """
    Ends a generation at logits out of which no token can be chosen: greedy search would take the first of the NaN.

    -inf is a token that is never said, so it is refused only where it is all that there is.
    """

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        highest_B = scores.max(dim=-1).values  # NaN if one of them is
        if not highest_B.isfinite().all():
            raise NonFiniteError(
                "The model's logits are NaN or infinite while it writes an answer, and a model that gives no numbers "
                "has no score. Check its weights (a broken save, a learning_rate that was too large), or load it in "
                "float32 or bfloat16 if it runs in float16."
            )
        return scores


def reference_log_likelihoods(
    model: "PreTrainedModel",
    collator: AnswerCollator,
    features: "Dataset",
    batch_size: int,
    *,
    device: torch.device | None = None,
    share: bool = False,
) -> tuple[list[float], list[int]]:
    """
    Log-likelihood of the reference answer of each row after its prompt, in nats, and its number of tokens.

    Args:
        model ([`~transformers.PreTrainedModel`]): of any kind with a language-model head.
        collator ([`AnswerCollator`]): of the model's kind.
        features ([`~datasets.Dataset`]): from `tokenize_dataset`; an end-of-sequence token counts where it is
            supervised in training.
        batch_size (`int`): rows a forward, fewer where their logits would be large.
        device, share: as in [`evaluate_task`].

    Raises:
        NonFiniteError: naming rows whose log-likelihood is NaN or infinite.
    """
    kind = kind_of(model)
    lengths = [len(ids) for ids in features["answer_ids"]]
    batch_size = max(1, min(batch_size, LOGITS_AT_A_TIME // (max(lengths) * output_size(model))))
    sums: dict[int, float] = {}
    totals = [len(p) + n for p, n in zip(features["prompt_ids"], lengths, strict=True)]
    for chosen in batches_by_length(totals, batch_size, share=share):
        batch = on_device(collator([features[i] for i in chosen]), device or model.device)
        supervised = kind.supervised_rows(model, batch)
        nll_N = torch.nn.functional.cross_entropy(
            supervised.logits_NV.float(), supervised.labels_N, reduction="none"
        ).double()
        nll_B = nll_N.new_zeros(len(chosen)).index_add(0, supervised.example_N, nll_N)
        for i, value in zip(chosen, nll_B.tolist(), strict=True):
            sums[i] = -value
    sums = from_all(sums, share)
    refuse_non_finite(
        ([sums[i]] for i in range(len(lengths))), features["example_id"], "log-likelihood of the reference answer"
    )
    return [sums[i] for i in range(len(lengths))], lengths


def reading_of_prompts(model: "PreTrainedModel", settings: GenerationSettings, reading: Reading) -> Reading:
    """
    How prompts are read: cut from the left so that the longest answer fits after them, where both share one context.

    Raises:
        InputError: if the settings ask for more tokens than the model can hold.
    """
    context = context_length(model)
    if context is not None and settings.max_new_tokens >= context:
        raise InputError(
            f"generation_kwargs.max_gen_toks is {settings.max_new_tokens}, but {type(unwrap(model)).__name__} reads "
            f"{context} tokens in all; set it lower in the task, or in a file that includes the task."
        )
    if context is None or not kind_of(model).continues_prompt:
        return reading
    return reading.within(context - settings.max_new_tokens)


def _prompt_batch(prompts: Sequence[list[int]], tokenizer: Any, decoder_only: bool) -> dict[str, Tensor]:
    """`input_ids` and `attention_mask` `[B, L]`, padded on the left where the answer follows in the same sequence."""
    length = max(map(len, prompts))
    masks = [[1] * len(ids) for ids in prompts]
    if not decoder_only:
        return {
            "input_ids": right_padded(prompts, tokenizer.pad_token_id, length),
            "attention_mask": right_padded(masks, 0, length),
        }
    return {
        "input_ids": left_padded(prompts, tokenizer.pad_token_id, length),
        "attention_mask": left_padded(masks, 0, length),
    }


@contextmanager
def _generation_config(inner: Any, tokenizer: Any, settings: GenerationSettings) -> "Iterator[GenerationConfig]":
    """
    The settings as a `GenerationConfig`, and the model without its own.

    Transformers fills what a call leaves open from the model's own configuration, and chat models bring sampling
    and penalties along, with which greedy would not be greedy.
    """
    from transformers import GenerationConfig

    own = inner.generation_config
    eos = own.eos_token_id if isinstance(own.eos_token_id, list) else [own.eos_token_id]
    ends = {token for token in (*eos, tokenizer.eos_token_id) if token is not None}
    config = GenerationConfig(
        # A model may be unable to generate with a cache; then its own configuration says so.
        **{"use_cache": own.use_cache is not False, **settings.options},
        max_new_tokens=settings.max_new_tokens,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=sorted(ends),
        bos_token_id=own.bos_token_id,
        decoder_start_token_id=own.decoder_start_token_id,
    )
    inner.generation_config = GenerationConfig()
    try:
        yield config
    finally:
        inner.generation_config = own


def _devices(model: "PreTrainedModel") -> list[torch.device]:
    return [model.device] if model.device.type == "cuda" else []
