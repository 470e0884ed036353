"""Encoder-decoders and encoders: supervised logits against the plain forward of Transformers."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from sinkd_llm.errors import InputError
from sinkd_llm.models.kinds import context_length, kind_of
from tests.support.models import ENCODER_DECODERS, ENCODERS
from tests.support.rows import CHOICE_ROWS, LONG_ROWS, batch_for

# ---- encoder-decoder


@pytest.mark.parametrize("model_type", ENCODER_DECODERS)
@pytest.mark.parametrize("add_eos", [False, True])
def test_an_encoder_decoder_predicts_as_transformers_does(
    model_type: str, add_eos: bool, tiny_model: Callable[..., Any], marked_tokenizer: Callable[[str], Any]
) -> None:
    model, tokenizer = tiny_model(model_type), marked_tokenizer(model_type)
    rows = [*LONG_ROWS, *CHOICE_ROWS]
    supervised = kind_of(model).supervised_rows(model, batch_for(model, tokenizer, rows, add_eos=add_eos))
    expected, labels = [], []
    for row in rows:  # one by one: no padding
        target = tokenizer(text_target=row["choices"][row["label"]].lstrip(), return_tensors="pt")["input_ids"]
        prompt = tokenizer(row["prompt"], return_tensors="pt")
        logits = model(input_ids=prompt["input_ids"], labels=target).logits[0]
        answer = slice(1 if model_type in ("bart", "pegasus") else 0, None if add_eos else -1)
        expected.append(logits[answer])
        labels.append(target[0][answer])
    torch.testing.assert_close(supervised.logits_NV, torch.cat(expected), rtol=1e-4, atol=1e-5)
    assert supervised.labels_N.tolist() == torch.cat(labels).tolist()
    counts = [len(label) for label in labels]
    assert supervised.example_N.tolist() == [e for e, count in enumerate(counts) for _ in range(count)]
    assert supervised.position_N.tolist() == [t for count in counts for t in range(count)]


def test_the_head_of_t5_is_scaled_and_runs_only_at_answers(tiny_model: Any, marked_tokenizer: Any) -> None:
    model, tokenizer = tiny_model("t5", tie_word_embeddings=True), marked_tokenizer("t5")
    assert model.config.scale_decoder_outputs
    inputs = []
    model.lm_head.register_forward_hook(lambda _, args, __: inputs.append(args[0]))
    supervised = kind_of(model).supervised_rows(model, batch_for(model, tokenizer, LONG_ROWS + CHOICE_ROWS))
    assert [tuple(x.shape) for x in inputs] == [(len(supervised.labels_N), 32)]
    torch.testing.assert_close(supervised.logits_NV, inputs[0] @ model.shared.weight.T)


@pytest.mark.parametrize("model_type", ["t5", "bart"])
def test_ranking_encodes_a_prompt_once(model_type: str, tiny_model: Any, marked_tokenizer: Any) -> None:
    from sinkd_llm.models.kinds.choices import score_choices

    model, tokenizer = tiny_model(model_type), marked_tokenizer(model_type)
    rows = [{**row, "choices": [" not good film", " bad food", " the food"]} for row in LONG_ROWS]
    batch = batch_for(model, tokenizer, rows, ranking=True)
    read = []
    model.get_encoder().register_forward_hook(lambda *_: read.append(1))
    with torch.no_grad():
        found = score_choices(kind_of(model), model, batch)
        scores, lengths = found.log_likelihood_BC, found.length_BC
    assert len(read) == 1
    assert batch["input_ids"].shape[0] == 3
    for b, row in enumerate(rows):
        for c, choice in enumerate(row["choices"]):
            target = tokenizer(text_target=choice.lstrip(), return_tensors="pt")["input_ids"]
            logits = model(input_ids=tokenizer(row["prompt"], return_tensors="pt")["input_ids"], labels=target).logits
            rows_TV = logits[0].log_softmax(-1)
            answer = range(1 if model_type == "bart" else 0, target.shape[1] - 1)
            want = sum(float(rows_TV[t, target[0, t]].detach()) for t in answer)
            assert float(scores[b, c]) == pytest.approx(want, rel=1e-4)
            assert lengths[b, c] == len(answer)


def test_an_encoder_decoder_without_a_start_token_is_refused(tiny_model: Any, marked_tokenizer: Any) -> None:
    model = tiny_model("bart", decoder_start_token_id=None)
    batch = batch_for(model, marked_tokenizer("bart"), CHOICE_ROWS)
    with pytest.raises(InputError, match="decoder_start_token_id"):
        kind_of(model).supervised_rows(model, batch)


# ---- encoder-only


@pytest.mark.parametrize("model_type", ENCODERS)
@pytest.mark.parametrize("pair", [False, True])
def test_a_classification_head_scores_as_in_transformers(
    model_type: str, pair: bool, tiny_model: Any, marked_tokenizer: Any
) -> None:
    model, tokenizer = tiny_model(model_type, num_labels=2), marked_tokenizer(model_type)
    rows = CHOICE_ROWS
    if pair:
        rows = [{**row, "text": row["prompt"], "text_pair": "the film" * (i + 1)} for i, row in enumerate(CHOICE_ROWS)]
    rows = [{**row, "choices": [" bad", " good"]} for row in rows]
    supervised = kind_of(model).supervised_rows(model, batch_for(model, tokenizer, rows))
    expected = [
        model(**tokenizer(row.get("text", row["prompt"]), row.get("text_pair"), return_tensors="pt")).logits
        for row in rows
    ]
    torch.testing.assert_close(supervised.logits_NV, torch.cat(expected), rtol=1e-4, atol=1e-5)
    assert supervised.labels_N.tolist() == [row["label"] for row in rows]
    assert supervised.example_N.tolist() == [0, 1, 2]


@pytest.mark.parametrize("model_type", ENCODERS)
def test_a_masked_language_model_is_asked_at_the_mask(model_type: str, tiny_model: Any, marked_tokenizer: Any) -> None:
    model, tokenizer = tiny_model(model_type, "MaskedLM"), marked_tokenizer(model_type)
    rows = [{**CHOICE_ROWS[0], "prompt": "a <mask> in the text"}, *CHOICE_ROWS]
    supervised = kind_of(model).supervised_rows(model, batch_for(model, tokenizer, rows))
    expected = []
    for row in rows:
        inputs = tokenizer(row["prompt"] + " <mask>", return_tensors="pt")
        at = (inputs["input_ids"][0] == tokenizer.mask_token_id).nonzero()[-1, 0]
        expected.append(model(**inputs).logits[0, at])
    torch.testing.assert_close(supervised.logits_NV, torch.stack(expected), rtol=1e-4, atol=1e-5)
    answers = [tokenizer(row["choices"][row["label"]], add_special_tokens=False)["input_ids"] for row in rows]
    assert supervised.labels_N.tolist() == [answer for (answer,) in answers]


def test_the_head_of_a_masked_language_model_runs_only_at_masks(tiny_model: Any, marked_tokenizer: Any) -> None:
    model = tiny_model("bert", "MaskedLM")
    shapes = []
    model.cls.predictions.decoder.register_forward_hook(lambda _, args, __: shapes.append(tuple(args[0].shape)))
    kind_of(model).supervised_rows(model, batch_for(model, marked_tokenizer("bert"), CHOICE_ROWS))
    assert shapes == [(3, 32)]


def test_answers_that_a_mask_cannot_hold_are_refused(tiny_model: Any, marked_tokenizer: Any) -> None:
    model = tiny_model("bert", "MaskedLM")
    with pytest.raises(InputError, match="one token at the mask"):
        batch_for(model, marked_tokenizer("bert"), LONG_ROWS)
    with pytest.raises(InputError, match="no mask token"):
        batch_for(model, marked_tokenizer("t5"), CHOICE_ROWS)
    with pytest.raises(InputError, match="predicts no end"):
        batch_for(model, marked_tokenizer("bert"), CHOICE_ROWS, add_eos=True)


def test_choices_that_are_not_the_classes_of_the_head_are_refused(tiny_model: Any, marked_tokenizer: Any) -> None:
    tokenizer = marked_tokenizer("bert")
    with pytest.raises(InputError, match="3 different lists"):
        batch_for(tiny_model("bert", num_labels=2), tokenizer, CHOICE_ROWS)
    with pytest.raises(InputError, match=r"2 answer choices.*3 outputs"):
        batch_for(tiny_model("bert", num_labels=3), tokenizer, CHOICE_ROWS[:1])


def test_long_texts_are_cut(tiny_model: Any, marked_tokenizer: Any) -> None:
    for model_type, head in (("bert", "SequenceClassification"), ("bert", "MaskedLM"), ("t5", "")):
        model, tokenizer = tiny_model(model_type, head), marked_tokenizer(model_type)
        row = {**CHOICE_ROWS[0], "prompt": "good " * 50 + "film Sentiment:"}
        batch = batch_for(model, tokenizer, [row], max_length=16)
        ids = batch["input_ids"][0].tolist()
        assert len(ids) == 16
        assert ids[-1] == tokenizer.eos_token_id
        assert "film Sentiment:" in tokenizer.decode(ids)
        assert (tokenizer.mask_token_id in ids) == (head == "MaskedLM")
    model, tokenizer = tiny_model("bert"), marked_tokenizer("bert")
    row = {**CHOICE_ROWS[0], "text": "good " * 50, "text_pair": "a film"}
    ids = batch_for(model, tokenizer, [row], max_length=16)["input_ids"][0].tolist()
    assert len(ids) == 16
    assert " a film" in tokenizer.decode(ids).replace("</s>", " ")


@pytest.mark.parametrize(("model_type", "bound"), [("bert", 128), ("roberta", 127), ("bart", 128), ("t5", None)])
def test_how_much_a_model_reads(model_type: str, bound: int | None, tiny_model: Any) -> None:
    # RoBERTa's first position stands behind the padding token's row of its table.
    model = tiny_model(model_type)
    assert context_length(model) == bound
    if bound and model_type != "bart":
        model(input_ids=torch.full((1, bound), 5))
        with pytest.raises((IndexError, RuntimeError)):
            model(input_ids=torch.full((1, bound + 1), 5))


# ---- all of them

EVERY = [("t5", ""), ("bart", ""), ("bert", "SequenceClassification"), ("roberta", "MaskedLM")]


@pytest.mark.parametrize(("model_type", "head"), EVERY)
def test_the_order_of_the_batch_does_not_matter(
    model_type: str, head: str, tiny_model: Any, marked_tokenizer: Any
) -> None:
    model, tokenizer = tiny_model(model_type, head), marked_tokenizer(model_type)
    rows = [{**row, "choices": [" bad", " good"]} for row in CHOICE_ROWS]
    forward, backward = (
        kind_of(model).supervised_rows(model, batch_for(model, tokenizer, order)) for order in (rows, rows[::-1])
    )
    for e in range(3):
        ours, theirs = forward.logits_NV[forward.example_N == e], backward.logits_NV[backward.example_N == 2 - e]
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("model_type", "head"), [pair for pair in EVERY if pair[1] != "SequenceClassification"])
def test_no_supervised_token_gives_no_row_and_zero_gradients(
    model_type: str, head: str, tiny_model: Any, marked_tokenizer: Any
) -> None:
    model = tiny_model(model_type, head)
    batch = batch_for(model, marked_tokenizer(model_type), CHOICE_ROWS)
    batch["labels"] = torch.full_like(batch["labels"], -100)
    supervised = kind_of(model).supervised_rows(model, batch)
    assert supervised.logits_NV.shape == (0, model.config.vocab_size)
    supervised.logits_NV.sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())


def test_models_without_a_head_are_refused(tiny_model: Any) -> None:
    for model in (tiny_model("t5").encoder, tiny_model("bert").bert):
        with pytest.raises(InputError, match=r"ForConditionalGeneration"):
            kind_of(model)
