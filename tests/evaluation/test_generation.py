"""Generated answers and the perplexity of the reference answers, against loops written from the definition."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sinkd_llm import evaluate_task
from sinkd_llm.errors import InputError, NonFiniteError
from sinkd_llm.evaluation.generation import GenerationSettings, StopAtStrings, cut_at
from sinkd_llm.inputs.dataset import tokenize_dataset
from sinkd_llm.inputs.decoder_only import DecoderOnlyCollator, DecoderOnlyTokenizer
from sinkd_llm.metrics import rouge_l
from sinkd_llm.tasks import Task

ROWS = [
    {"text": "the film was great", "label": "a great film"},
    {"text": "good", "label": "positive"},
    {"text": "question: is the food not awful but bad ?\nsports , science and world business", "label": "yes and no"},
    {"text": "the plot", "label": "true . false"},
]
NEW_TOKENS = 7


@pytest.fixture
def make_generation(tmp_path: Path) -> Callable[..., Task]:
    """A task of written answers over `ROWS`."""

    def make(**generation: Any) -> Task:
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
        config = {
            "task": "writing",
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"train": "rows.jsonl", "validation": "rows.jsonl"}},
            "training_split": "train",
            "validation_split": "validation",
            "output_type": "generate_until",
            "doc_to_text": "{{text}}\nAnswer:",
            "doc_to_target": "label",
            "generation_kwargs": {"until": [], "max_gen_toks": NEW_TOKENS, **generation},
            "metadata": {"metrics": ["rouge_l", "perplexity"]},
        }
        (tmp_path / "writing.yaml").write_text(json.dumps(config), encoding="utf-8")  # JSON is YAML
        return Task(tmp_path / "writing.yaml")

    return make


def spread(model: Any, factor: float = 6.0) -> Any:
    """Weights that give decided predictions: random ones of the usual size repeat one token for every prompt."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(factor)
    return model


@pytest.fixture(params=["llama", "gpt2", "t5", "bart"])
def writer(request: pytest.FixtureRequest, tiny_causal_lm: Any, tiny_model: Any) -> Any:
    """A model that writes, of each layout; learnt positions count padding if they are told wrongly."""
    if request.param in ("t5", "bart"):
        return spread(tiny_model(request.param, seed=4), 20.0 if request.param == "bart" else 6.0)
    return spread(tiny_causal_lm(request.param, seed=4))


@pytest.fixture
def writers_tokenizer(writer: Any, tiny_tokenizer: Any, marked_tokenizer: Any) -> Any:
    return marked_tokenizer(writer.config.model_type) if writer.config.is_encoder_decoder else tiny_tokenizer


def logits_behind(model: Any, prompt_ids: list[int], answer_ids: list[int]) -> torch.Tensor:
    """Logits of each place of the answer and of the next token: one row, no padding, no cache, all afresh."""
    if model.config.is_encoder_decoder:
        decoder_ids = torch.tensor([[model.config.decoder_start_token_id, *answer_ids]])
        return model(input_ids=torch.tensor([prompt_ids]), decoder_input_ids=decoder_ids, use_cache=False).logits[0]
    logits = model(torch.tensor([prompt_ids + answer_ids]), use_cache=False).logits[0]
    return logits[len(prompt_ids) - 1 :]


def before_answer(model: Any) -> list[int]:
    """What BART's decoder reads in front of an answer, `<s>`, and is not asked to predict."""
    return [1] if model.config.model_type == "bart" else []


@torch.no_grad()
def naive_answers(model: Any, tokenizer: Any, until: tuple[str, ...] = ()) -> list[str]:
    texts = []
    for row in ROWS:
        prompt_ids = tokenizer(row["text"] + "\nAnswer:")["input_ids"]
        answer: list[int] = []
        while len(answer) < NEW_TOKENS:
            token = int(logits_behind(model, prompt_ids, before_answer(model) + answer)[-1].argmax())
            if token == tokenizer.eos_token_id:
                break
            answer.append(token)
        text = tokenizer.decode(answer, skip_special_tokens=True)
        for stop in until:
            text = text.split(stop)[0]
        texts.append(text.strip())
    return texts


@torch.no_grad()
def naive_perplexity(model: Any, tokenizer: Any, eos: bool) -> float:
    total, count = 0.0, 0
    for row in ROWS:
        prompt_ids = tokenizer(row["text"] + "\nAnswer:")["input_ids"]
        before = before_answer(model)
        if model.config.is_encoder_decoder:
            answer = tokenizer(text_target=row["label"], add_special_tokens=False)["input_ids"]
        else:
            answer = tokenizer(" " + row["label"])["input_ids"]
        answer = answer + [tokenizer.eos_token_id] * eos
        log_probs = logits_behind(model, prompt_ids, before + answer).double().log_softmax(-1)[len(before) :]
        total -= sum(float(log_probs[i, token]) for i, token in enumerate(answer))
        count += len(answer)
    return math.exp(total / count)


@pytest.mark.parametrize("batch_size", [1, 3, 4])
def test_greedy_answers_are_those_of_the_naive_loop(
    batch_size: int, writer: Any, writers_tokenizer: Any, make_generation: Any
) -> None:
    task = make_generation()
    score = evaluate_task(writer, writers_tokenizer, task, task.load("validation"), batch_size=batch_size)
    expected = naive_answers(writer, writers_tokenizer)
    assert len({*expected}) > 1
    assert score.predictions == expected
    rouge = [rouge_l(text, row["label"]) for text, row in zip(expected, ROWS, strict=True)]
    assert score.metrics["rouge_l"] == pytest.approx(sum(rouge) / len(rouge))
    assert score.metrics["perplexity"] == pytest.approx(naive_perplexity(writer, writers_tokenizer, True), rel=1e-4)
    assert list(score.metrics) == ["rouge_l", "perplexity"]
    assert task.primary_metric == "rouge_l"
    assert score.num_examples == len(score.log_likelihoods) == len(ROWS)


def test_the_end_token_counts_as_it_was_trained(writer: Any, writers_tokenizer: Any, make_generation: Any) -> None:
    task = make_generation()
    found = {}
    for add_eos in (False, True):
        score = evaluate_task(writer, writers_tokenizer, task, task.load("validation"), add_eos=add_eos)
        found[add_eos] = score.metrics["perplexity"]
        assert found[add_eos] == pytest.approx(naive_perplexity(writer, writers_tokenizer, add_eos), rel=1e-4)
    assert found[False] != pytest.approx(found[True], rel=1e-3)


def test_a_stop_string_cuts_and_saves_the_rest(writer: Any, writers_tokenizer: Any, make_generation: Any) -> None:
    free = naive_answers(writer, writers_tokenizer)
    longest = max(free, key=len)
    stop = longest[len(longest) // 2 :][:2]
    task = make_generation(until=[stop, "never written"])
    score = evaluate_task(writer, writers_tokenizer, task, task.load("validation"), batch_size=2)
    assert score.predictions == naive_answers(writer, writers_tokenizer, (stop,))
    assert score.predictions != free


def test_stop_strings_are_looked_for_in_the_answer_alone(tiny_tokenizer: Any) -> None:
    texts = ("yes\n\nno\n and", "yes\n\nyes\n\n and")
    ids = torch.tensor([tiny_tokenizer(text)["input_ids"][:7] for text in texts])
    assert StopAtStrings(tiny_tokenizer, ["\n\n"], 0)(ids[:, :3], None).tolist() == [True, True]
    # The prompt ends behind the first line break.
    assert StopAtStrings(tiny_tokenizer, ["\n\n"], 2)(ids[:, :3], None).tolist() == [False, False]
    assert StopAtStrings(tiny_tokenizer, ["\n\n"], 2)(ids[:, :6], None).tolist() == [False, True]
    assert StopAtStrings(tiny_tokenizer, [], 0)(ids, None).tolist() == [False, False]
    assert cut_at("one. two! three", ["!", "."]) == "one"
    assert cut_at("one", []) == "one"


def test_the_models_own_settings_do_not_leak_into_greedy(
    tiny_causal_lm: Any, tiny_tokenizer: Any, make_generation: Any
) -> None:
    model = spread(tiny_causal_lm("llama", seed=4))
    expected = naive_answers(model, tiny_tokenizer)
    model.generation_config.update(
        do_sample=True, temperature=5.0, repetition_penalty=9.0, min_new_tokens=3, num_beams=2
    )
    own = model.generation_config
    task = make_generation()
    assert evaluate_task(model, tiny_tokenizer, task, task.load("validation")).predictions == expected
    assert model.generation_config is own


def test_sampling_repeats_and_leaves_other_random_numbers_alone(
    tiny_causal_lm: Any, tiny_tokenizer: Any, make_generation: Any
) -> None:
    model = tiny_causal_lm("llama")
    task = make_generation(do_sample=True, temperature=2.0)
    rows = task.load("validation")
    torch.manual_seed(3)
    following = torch.rand(3)
    torch.manual_seed(3)
    first = evaluate_task(model, tiny_tokenizer, task, rows)
    assert torch.equal(torch.rand(3), following)
    assert evaluate_task(model, tiny_tokenizer, task, rows).predictions == first.predictions
    greedy = make_generation()
    assert evaluate_task(model, tiny_tokenizer, greedy, rows).predictions != first.predictions


def test_a_prompt_leaves_room_for_the_answer(tiny_causal_lm: Any, tiny_tokenizer: Any, make_generation: Any) -> None:
    model = tiny_causal_lm("gpt2")  # 128 places, and an error behind them
    task = make_generation(max_gen_toks=120)
    score = evaluate_task(model, tiny_tokenizer, task, task.load("validation"))
    assert len(score.predictions) == len(ROWS)
    assert math.isfinite(score.metrics["perplexity"])
    task = make_generation(max_gen_toks=128)
    with pytest.raises(InputError, match="max_gen_toks is 128, but GPT2LMHeadModel reads 128 tokens in all"):
        evaluate_task(model, tiny_tokenizer, task, task.load("validation"))


@pytest.mark.parametrize("head", ["SequenceClassification", "MaskedLM"])
def test_encoders_are_refused(head: str, tiny_model: Any, marked_tokenizer: Any, make_generation: Any) -> None:
    task = make_generation()
    with pytest.raises(
        InputError, match=r"are generated, and Bert.* is an encoder with .* head, which writes no text"
    ):
        evaluate_task(tiny_model("bert", head), marked_tokenizer("bert"), task, task.load("validation"))


def test_settings_follow_the_harness(make_generation: Any) -> None:
    task = make_generation()
    task.config["generation_kwargs"] = None
    assert GenerationSettings.of(task) == GenerationSettings(("\n\n",), 256, {"do_sample": False})
    task.config["generation_kwargs"] = {"until": "\n", "max_new_tokens": 4, "temperature": 0.5, "top_p": 0.9}
    sampled = {"temperature": 0.5, "top_p": 0.9, "do_sample": True}
    assert GenerationSettings.of(task) == GenerationSettings(("\n",), 4, sampled)
    task.config["generation_kwargs"] = {"do_sample": False, "temperature": 0.0, "top_p": 0.9, "num_beams": 2}
    assert GenerationSettings.of(task).options == {"do_sample": False, "num_beams": 2}


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"temprature": 1.0}, "has the key 'temprature', which is not read here"),
        ({"until": [3]}, r"until of the task 'writing' is \[3\]; give texts"),
        ({"max_gen_toks": 0}, "max_gen_toks of the task 'writing' is 0; give a number of tokens"),
        ({"temperature": "hot"}, "temperature of the task 'writing' is 'hot'; give a number"),
        (
            {"do_sample": True, "temperature": 0.0},
            "temperature of the task .writing. is 0.0, with which nothing can be sampled",
        ),
    ],
)
def test_wrong_settings_are_named(
    given: dict[str, Any], problem: str, tiny_causal_lm: Any, tiny_tokenizer: Any, make_generation: Any
) -> None:
    task = make_generation(**given)
    with pytest.raises(InputError, match=problem):
        evaluate_task(tiny_causal_lm(), tiny_tokenizer, task, task.load("validation"))


@pytest.mark.real_model
def test_smollm2_answers_instructions(smollm2: tuple[Any, Any], tmp_path: Path) -> None:
    from sinkd_llm.tasks import load_task

    model, tokenizer = smollm2
    questions = [("What is the capital of France?", "Paris"), ("Name the opposite of hot.", "cold")]
    lines = [json.dumps({"instruction": q, "input": "", "output": a}) + "\n" for q, a in questions]
    for name in ("train.jsonl", "val.jsonl"):
        (tmp_path / name).write_text("".join(lines), encoding="utf-8")
    task = load_task("instruct")
    task.config["generation_kwargs"] = {**task.config["generation_kwargs"], "max_gen_toks": 24}
    score = evaluate_task(model, tokenizer, task, task.load("validation", tmp_path), apply_chat_template=True)
    assert "Paris" in score.predictions[0]
    assert all("\n\n" not in text for text in score.predictions)
    assert 1 < score.metrics["perplexity"] < 1000
    assert 0 < score.metrics["rouge_l"] <= 1


@pytest.mark.parametrize("sampling", [{}, {"do_sample": True, "temperature": 0.7}, {"num_beams": 2}])
def test_a_model_that_gives_no_numbers_writes_no_answer(
    sampling: dict[str, Any], writer: Any, writers_tokenizer: Any, make_generation: Any
) -> None:
    writer.get_output_embeddings().weight.data[:, 3] = float("nan")
    task = make_generation(**sampling)
    with pytest.raises(NonFiniteError, match="while it writes an answer"):
        evaluate_task(writer, writers_tokenizer, task, task.load("validation"))


def test_a_reference_that_has_no_likelihood_is_refused(
    tiny_causal_lm: Any, tiny_tokenizer: Any, make_generation: Any
) -> None:
    from sinkd_llm.evaluation.generation import reference_log_likelihoods

    model = tiny_causal_lm()
    (token,) = tiny_tokenizer(" science")["input_ids"]  # read in the third row alone
    model.get_input_embeddings().weight.data[token] = float("nan")
    task = make_generation()
    rows = task.load("validation")
    features = tokenize_dataset(rows, DecoderOnlyTokenizer(tiny_tokenizer))
    message = f"log-likelihood of the reference answer is NaN or infinite for {rows[2]['id']}, and"
    with pytest.raises(NonFiniteError, match=re.escape(message)), torch.no_grad():
        reference_log_likelihoods(model.eval(), DecoderOnlyCollator(tiny_tokenizer.pad_token_id), features, 1)
