"""The trainer on encoder-decoders and encoders: the same trainer, loss and task format as for decoders."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sinkd_llm import SinKDConfig, SinKDTrainer, evaluate_task
from sinkd_llm.errors import InputError
from sinkd_llm.models import load_model
from tests.support.rows import opinions, regression_rows, several_tokens
from tests.support.trainers import AccuracyTask, changed_trainer, gradients, microbatches

MODELS = [("t5", ""), ("bart", ""), ("bert", "SequenceClassification"), ("roberta", "MaskedLM")]
Build = Callable[..., SinKDTrainer]


@pytest.fixture
def build(tmp_path: Path, tiny_model: Callable[..., Any], marked_tokenizer: Callable[[str], Any]) -> Build:
    """A trainer: a two-layer student, a four-layer teacher of another width, without dropout."""

    def make(model_type: str, head: str = "", teacher: Any = True, **changes: Any) -> SinKDTrainer:
        arguments: dict[str, Any] = {
            "model": tiny_model(model_type, head or "SequenceClassification", seed=1),
            "teacher_model": tiny_model(model_type, head or "SequenceClassification", seed=2, layers=4, hidden=48)
            if teacher is True
            else teacher,
            "processing_class": marked_tokenizer(model_type),
            "train_dataset": opinions(),
            "eval_dataset": opinions(8, 100),
        }
        return changed_trainer(tmp_path, arguments, changes)

    return make


@pytest.mark.parametrize(("model_type", "head"), MODELS)
@pytest.mark.parametrize("settings", [{"alpha": 0.0, "divergence": "none", "sinkhorn_weight": 0.0}, {"alpha": 0.7}])
def test_accumulation_of_8_times_1_equals_1_times_8(model_type: str, head: str, settings: dict, build: Build) -> None:
    data = several_tokens() if head == "" else opinions(8)
    if "divergence" not in settings:
        settings = {**settings, "transport_scope": "sequence"}
    trainer = build(model_type, head, train_dataset=data, eval_dataset=None, **settings)
    once, once_gradient = gradients(trainer, microbatches(trainer, [8]))
    for sizes in ([1] * 8, [5, 3]):
        many, many_gradient = gradients(trainer, microbatches(trainer, sizes))
        assert many == pytest.approx(once, rel=1e-5)
        torch.testing.assert_close(many_gradient, once_gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("model_type", "head"), MODELS)
@pytest.mark.parametrize("adapter", [False, True], ids=["full", "lora"])
def test_two_steps_save_and_the_same_score(
    model_type: str, head: str, adapter: bool, build: Build, marked_tokenizer: Any, tmp_path: Path
) -> None:
    from peft import LoraConfig

    peft_config = LoraConfig(r=2, target_modules="all-linear") if adapter else None
    trainer = build(model_type, head, peft_config=peft_config, vocabulary="verbalizers")
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.train()
    record = next(r for r in trainer.state.log_history if "loss" in r)
    assert all(np.isfinite(record[name]) for name in ("ce", "kl", "sinkhorn", "grad_norm"))
    changed = {name for name, p in trainer.model.named_parameters() if not torch.equal(p, before[name])}
    assert changed
    assert not adapter or all("lora_" in name or "classifier" in name for name in changed)
    if adapter:
        assert trainer.model.peft_config["default"].task_type == trainer.kind.lora_task_type
    metrics = trainer.evaluate()
    assert 0 <= metrics["eval_agreement"] <= 1

    trainer.save_model(str(tmp_path / "student"))
    scored = [
        evaluate_task(model, marked_tokenizer(model_type), AccuracyTask(), opinions(8, 100), batch_size=size)
        for model, size in ((trainer.model, 8), (load_model(tmp_path / "student"), 3))
    ]
    np.testing.assert_allclose(scored[0].log_likelihoods, scored[1].log_likelihoods, rtol=1e-3, atol=1e-5)
    assert scored[0].predictions == scored[1].predictions
    assert metrics["eval_acc"] == scored[0].metrics["acc"]


@pytest.mark.parametrize(("model_type", "head"), MODELS)
def test_training_learns_the_task(model_type: str, head: str, build: Build) -> None:
    # A random masked language model has to find out first that the mask is where to look from.
    steps = 120 if head == "MaskedLM" else 40
    trainer = build(model_type, head, teacher=None, max_steps=steps, lr_scheduler_type="constant")
    trainer.train()
    assert trainer.evaluate()["eval_acc"] == 1.0


def test_an_explicit_adapter_type_wins(build: Build, caplog: pytest.LogCaptureFixture) -> None:
    from peft import LoraConfig

    trainer = build("t5", peft_config=LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    assert trainer.model.peft_config["default"].task_type == "CAUSAL_LM"
    assert "SEQ_2_SEQ_LM" in caplog.text


@pytest.mark.parametrize(("model_type", "head"), [("t5", ""), ("bart", ""), ("roberta", "MaskedLM")])
def test_a_padded_vocabulary_trains_over_the_shared_tokens(
    model_type: str, head: str, build: Build, tiny_model: Any, marked_tokenizer: Any, tmp_path: Path
) -> None:
    wide = tiny_model(model_type, head, seed=2, vocab=len(marked_tokenizer(model_type)) + 24)
    with pytest.raises(InputError, match="tokenizer could not be found"):
        build(model_type, head, teacher=wide)
    wide.save_pretrained(tmp_path / "wide")
    marked_tokenizer(model_type).save_pretrained(tmp_path / "wide")
    trainer = build(model_type, head, teacher=str(tmp_path / "wide"))
    assert np.isfinite(trainer.train().training_loss)


def test_a_head_is_made_for_the_classes_of_the_task(
    build: Build, tiny_model: Any, marked_tokenizer: Any, tmp_path: Path
) -> None:
    tiny_model("bert", "MaskedLM", layers=4).save_pretrained(tmp_path / "mlm")
    marked_tokenizer("bert").save_pretrained(tmp_path / "mlm")
    name = str(tmp_path / "mlm")
    trainer = build("bert", teacher=None, model=name, student_layers=2)
    assert trainer.kind.name == "sequence-classification"
    assert trainer.model.config.id2label == {0: "negative", 1: "positive"}
    assert trainer.model.config.num_hidden_layers == 2
    # Beside a teacher that scores words, the student does so too.
    words = build("bert", model=name, teacher=name)
    assert words.kind.name == "masked-lm"
    assert build("bert", teacher=None, model=name, model_kind="masked-lm").kind.name == "masked-lm"


def test_a_student_cut_from_an_encoder_decoder(build: Build, tiny_model: Any) -> None:
    teacher = tiny_model("t5", layers=4)
    trainer = build("t5", teacher=teacher, model=None, student_layers=3, student_decoder_layers=1)
    config = trainer.model.config
    assert (config.num_layers, config.num_decoder_layers) == (3, 1)
    assert np.isfinite(trainer.train().training_loss)
    with pytest.raises(InputError, match="without student_layers"):
        SinKDConfig("unused", student_decoder_layers=1)


# ---- a teacher of another kind


def test_kinds_that_read_the_same_answer_teach_each_other(
    build: Build, tiny_model: Any, tiny_causal_lm: Any, marked_tokenizer: Any
) -> None:
    # A masked language model's tokens are a decoder's: both answer behind the prompt.
    tokenizer = marked_tokenizer("roberta")
    student = tiny_causal_lm(vocab=len(tokenizer))
    trainer = build("roberta", teacher=tiny_model("roberta", "MaskedLM", seed=2), model=student)
    (batch,) = microbatches(trainer, [8])
    ours = trainer.kind.supervised_rows(student, batch)
    theirs = trainer.teacher.supervised_rows(batch["teacher"])
    assert torch.equal(ours.labels_N, theirs.labels_N)
    assert torch.equal(ours.example_N, theirs.example_N)
    assert np.isfinite(trainer.train().training_loss)
    assert 0 <= trainer.evaluate()["eval_agreement"] <= 1


def test_kinds_that_read_different_tokens_are_refused(
    build: Build, tiny_model: Any, tiny_causal_lm: Any, marked_tokenizer: Any
) -> None:
    # BART's answer begins its text, a decoder's follows a space: other tokens of a byte-level vocabulary.
    decoder = tiny_causal_lm(vocab=len(marked_tokenizer("bart")))
    with pytest.raises(InputError, match="different kinds and read the answer of opinion-0"):
        build("bart", teacher=decoder)


def test_classes_and_words_cannot_be_compared(build: Build, tiny_model: Any) -> None:
    message = (
        "The teacher is an encoder with a classification head and the student an encoder with a masked-language-model "
        "head: classes cannot be compared with words"
    )
    with pytest.raises(InputError, match=message):
        build("bert", "MaskedLM", teacher=tiny_model("bert"), signal="tokens")
    with pytest.raises(InputError, match="3 outputs and the student's 2"):
        build("bert", "SequenceClassification", teacher=tiny_model("bert", num_labels=3))


def test_a_decoder_has_its_own_article(build: Build, tiny_model: Any, tiny_causal_lm: Any) -> None:
    with pytest.raises(InputError, match="The teacher is a decoder-only model and the student an encoder with"):
        build("bert", "SequenceClassification", teacher=tiny_causal_lm(), signal="tokens")


def test_dropout_is_disabled_wherever_it_is_kept(build: Build, tiny_model: Any) -> None:
    model = tiny_model("bart", dropout=0.1, attention_dropout=0.1, encoder_layerdrop=0.1)
    trainer = build("bart", model=model, disable_dropout=True)
    rates = [v for m in trainer.model.modules() for n, v in vars(m).items() if "drop" in n and isinstance(v, float)]
    assert rates
    assert not any(rates)


@pytest.mark.parametrize(
    ("model_type", "other", "head"),
    [("t5", "bart", ""), ("bert", "distilbert", "SequenceClassification"), ("bert", "roberta", "MaskedLM")],
)
def test_models_of_one_kind_and_one_tokenizer_teach_each_other(
    model_type: str, other: str, head: str, build: Build, tiny_model: Any, marked_tokenizer: Any
) -> None:
    vocabulary = len(marked_tokenizer(model_type))
    teacher = tiny_model(other, head or "Seq2SeqLM", seed=2, layers=3, hidden=48, vocab=vocabulary)
    trainer = build(model_type, head, teacher=teacher)
    assert np.isfinite(trainer.train().training_loss)
    assert 0 <= trainer.evaluate()["eval_agreement"] <= 1


@pytest.mark.parametrize(
    ("settings", "warns"),
    [({}, True), ({"sinkhorn_weight": 0.1}, False), ({"cost_norm": "sql2"}, False), ({"teacher": None}, False)],
)
def test_the_default_weight_is_warned_of_in_a_regression(
    settings: dict[str, Any], warns: bool, build: Build, tiny_model: Any, caplog: Any
) -> None:
    teacher = None if "teacher" in settings else tiny_model("bert", seed=2, num_labels=1)
    settings = {name: value for name, value in settings.items() if name != "teacher"}
    numbers = {"train_dataset": regression_rows(), "eval_dataset": regression_rows(6)}
    build("bert", model=tiny_model("bert", seed=1, num_labels=1), teacher=teacher, **numbers, **settings)
    assert ("sinkhorn_weight 0.8 with an L1 cost outweighs the squared errors" in caplog.text) == warns
    caplog.clear()
    build("bert")
    assert "outweighs" not in caplog.text
