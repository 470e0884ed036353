"""Student and teacher of a run: two models, of which one is trained, that speak the same tokens."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model

from sinkd_llm import SinKDConfig, SinKDTrainer
from sinkd_llm.errors import InputError
from sinkd_llm.models import load_model, save_student
from sinkd_llm.models.pair_checks import check_apart, check_scale, check_trains
from sinkd_llm.teachers.fit import check_pair
from tests.support.rows import regression_rows

ROWS = Dataset.from_list(
    [
        {"prompt": f"Review: a {word} film\nSentiment:", "completion": f" {label}"}
        for word, label in (("good", "positive"), ("bad", "negative"), ("great", "positive"), ("awful", "negative"))
    ]
)


def make_trainer(tmp_path: Path, tokenizer: Any, **options: Any) -> SinKDTrainer:
    settings: dict[str, Any] = {"use_cpu": True, "report_to": [], "max_steps": 1, "per_device_train_batch_size": 2}
    return SinKDTrainer(
        args=SinKDConfig(str(tmp_path / "run"), **settings),
        train_dataset=ROWS,
        processing_class=tokenizer,
        **options,
    )


@pytest.mark.parametrize("peft_config", [None, LoraConfig(target_modules=["q_proj"])])
def test_one_model_cannot_be_teacher_and_student(
    tiny_causal_lm: Callable[..., Any], tiny_tokenizer: Any, tmp_path: Path, peft_config: Any
) -> None:
    model = tiny_causal_lm()
    with pytest.raises(InputError, match=r"the same model.*copy\.deepcopy"):
        make_trainer(tmp_path, tiny_tokenizer, model=model, teacher_model=model, peft_config=peft_config)
    assert not any("lora" in name for name, _ in model.named_parameters())
    make_trainer(tmp_path, tiny_tokenizer, model=copy.deepcopy(model), teacher_model=model).train()


def test_an_adapter_on_the_teacher_itself_is_no_student(
    tiny_causal_lm: Callable[..., Any], tiny_tokenizer: Any, tmp_path: Path
) -> None:
    teacher = tiny_causal_lm()
    student = get_peft_model(teacher, LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(InputError, match="the same model"):
        make_trainer(tmp_path, tiny_tokenizer, model=student, teacher_model=teacher)


def test_a_student_of_the_teachers_own_layers_is_refused(
    tiny_causal_lm: Callable[..., Any], tiny_tokenizer: Any, tmp_path: Path
) -> None:
    teacher, student = tiny_causal_lm(layers=4), tiny_causal_lm(layers=2, seed=1)
    student.model.layers[1] = teacher.model.layers[3]
    with pytest.raises(InputError, match=r"weight model\.layers\.1\..* is the teacher's own"):
        make_trainer(tmp_path, tiny_tokenizer, model=student, teacher_model=teacher)
    tied = tiny_causal_lm(seed=1)
    tied.model.embed_tokens.weight = teacher.model.embed_tokens.weight
    with pytest.raises(InputError, match=r"embed_tokens\.weight is the teacher's own"):
        check_apart(teacher, tied)
    view = tiny_causal_lm(seed=1)
    view.lm_head.weight = torch.nn.Parameter(teacher.lm_head.weight.data[:])
    with pytest.raises(InputError, match=r"lm_head\.weight is the teacher's own"):
        check_apart(teacher, view)
    check_apart(teacher, tiny_causal_lm(seed=1))


def test_nothing_is_written_where_a_model_was_read(
    tiny_causal_lm: Callable[..., Any], tiny_tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, seed in (("teacher", 0), ("student", 1)):
        save_student(tiny_causal_lm(seed=seed), tiny_tokenizer, tmp_path / name)
    before = (tmp_path / "teacher" / "model.safetensors").read_bytes()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to("teacher")
    loaded = load_model("teacher")
    for teacher in ("teacher", loaded):
        trainer = make_trainer(tmp_path, tiny_tokenizer, model="student", teacher_model=teacher)
        trainer.train()
        for folder in ("teacher", "./teacher/", "link", str(tmp_path / "teacher"), "student"):
            with pytest.raises(InputError, match="this run reads"):
                trainer.save_model(folder)
    assert (tmp_path / "teacher" / "model.safetensors").read_bytes() == before
    with pytest.raises(InputError, match="this run reads"):
        SinKDTrainer("student", "teacher", SinKDConfig("link", use_cpu=True), train_dataset=ROWS)


def test_a_frozen_student_is_refused(tiny_causal_lm: Callable[..., Any], tiny_tokenizer: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"requires_grad_\(True\)"):
        make_trainer(tmp_path, tiny_tokenizer, model=tiny_causal_lm().requires_grad_(False)).train()
    get_peft_model(tiny_causal_lm(), LoraConfig(target_modules=["q_proj"])).save_pretrained(str(tmp_path / "adapter"))
    frozen = PeftModel.from_pretrained(tiny_causal_lm(), tmp_path / "adapter")
    with pytest.raises(InputError, match="is_trainable=True"):
        check_trains(frozen)


def test_a_damaged_tokenizer_of_the_teacher_is_no_missing_one(
    tiny_causal_lm: Callable[..., Any], tiny_tokenizer: Any, tmp_path: Path
) -> None:
    teacher, student = tiny_causal_lm(), tiny_causal_lm(seed=1)
    teacher.save_pretrained(tmp_path / "teacher")
    check_pair(teacher, str(tmp_path / "teacher"), student, tiny_tokenizer, False)  # none: the widths agree
    tiny_tokenizer.save_pretrained(tmp_path / "teacher")
    check_pair(teacher, str(tmp_path / "teacher"), student, tiny_tokenizer, False)
    file = tmp_path / "teacher" / "tokenizer.json"
    for damaged in (file.read_text()[:500], json.dumps([1, 2]), ""):
        file.write_text(damaged)
        with pytest.raises(InputError, match="The teacher's tokenizer cannot be read"):
            check_pair(teacher, str(tmp_path / "teacher"), student, tiny_tokenizer, False)


def test_a_teacher_of_another_scale_is_refused() -> None:
    truth = torch.rand(40, 1, generator=torch.Generator().manual_seed(0))
    check_scale(truth)
    check_scale(truth * 1.5 - 0.2)
    with pytest.raises(InputError, match="STS-B's own 0 to 5"):
        check_scale(truth * 5)
    with pytest.raises(InputError, match="another scale"):
        check_scale(truth * 100)


def test_the_trainer_asks_a_regression_teacher_for_its_scale(
    tiny_model: Callable[..., Any], marked_tokenizer: Any, tmp_path: Path
) -> None:
    teacher, student = tiny_model("bert", num_labels=1), tiny_model("bert", num_labels=1, seed=1)
    with torch.no_grad():
        teacher.classifier.bias += 4.0
    with pytest.raises(InputError, match="another scale"):
        SinKDTrainer(
            model=student,
            teacher_model=teacher,
            args=SinKDConfig(str(tmp_path), use_cpu=True, report_to=[]),
            train_dataset=regression_rows(),
            processing_class=marked_tokenizer("bert"),
        )


def test_what_cannot_be_saved_is_found_before_training(
    tiny_causal_lm: Callable[..., Any], tiny_tokenizer: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    student = tiny_causal_lm()
    student.generation_config.temperature = 0.6
    trainer = make_trainer(tmp_path, tiny_tokenizer, model=student)
    assert "temperature=0.6" in caplog.text
    trainer.train()
    trainer.save_model(str(tmp_path / "student"))


@pytest.mark.parametrize("adapter", [None, LoraConfig(target_modules=["q_proj"])])
def test_a_student_trained_under_autocast_is_compared_without_it(
    tiny_causal_lm: Callable[..., Any], tiny_tokenizer: Any, tmp_path: Path, adapter: Any
) -> None:
    trainer = SinKDTrainer(
        model=tiny_causal_lm(),
        args=SinKDConfig(str(tmp_path / "run"), use_cpu=True, report_to=[], max_steps=1, bf16=True),
        train_dataset=ROWS,
        processing_class=tiny_tokenizer,
        peft_config=adapter,
    )
    trainer.train()
    trainer.save_model(str(tmp_path / "student"))
    assert (tmp_path / "student" / "sinkd_student.json").is_file()


def test_a_model_without_weights_is_refused(
    tiny_causal_lm: Callable[..., Any], tiny_tokenizer: Any, tmp_path: Path
) -> None:
    whole = tiny_causal_lm()
    with torch.device("meta"):
        empty = type(whole)(whole.config)
    for role, models in (("student", (empty, whole)), ("teacher", (whole, empty))):
        with pytest.raises(InputError, match=rf"The {role} has no weights: .*meta device"):
            make_trainer(tmp_path, tiny_tokenizer, model=models[0], teacher_model=models[1])


def test_a_student_of_several_dtypes_is_refused(
    tiny_causal_lm: Callable[..., Any], tiny_tokenizer: Any, tmp_path: Path
) -> None:
    student = tiny_causal_lm()
    student.model.layers[0].to(torch.bfloat16)
    with pytest.raises(InputError, match=r"The student .*several dtypes.*bf16"):
        make_trainer(tmp_path, tiny_tokenizer, model=student, teacher_model=tiny_causal_lm(seed=1))


def test_a_teacher_without_a_tokenizer_is_said(
    tiny_causal_lm: Callable[..., Any], tiny_tokenizer: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tiny_causal_lm(seed=1).save_pretrained(tmp_path / "teacher")
    with caplog.at_level("WARNING", logger="sinkd_llm"):
        make_trainer(tmp_path, tiny_tokenizer, model=tiny_causal_lm(), teacher_model=str(tmp_path / "teacher"))
    assert "holds no tokenizer of the teacher" in caplog.text
    caplog.clear()
    tiny_tokenizer.save_pretrained(tmp_path / "teacher")
    with caplog.at_level("WARNING", logger="sinkd_llm"):
        make_trainer(tmp_path, tiny_tokenizer, model=tiny_causal_lm(), teacher_model=str(tmp_path / "teacher"))
    assert "holds no tokenizer" not in caplog.text
