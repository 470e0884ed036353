"""The layers of a student by what its teacher does with training rows: settings, rows, answers, records."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import nn

from sinkd_llm import SinKDConfig, SinKDTrainer
from sinkd_llm.distributed import Ranks
from sinkd_llm.errors import InputError
from sinkd_llm.models import load_model, select_layers
from sinkd_llm.models.origin import noted_layers, set_origin
from sinkd_llm.models.outputs import probe_outputs
from sinkd_llm.training.checkpoint_facts import differences, run_facts
from sinkd_llm.training.layer_selection import choose_layers, cut_student
from tests.support.models import same_weights, with_adapter
from tests.support.rows import opinions, regression_rows


@pytest.fixture
def args(tmp_path: Path) -> Callable[..., SinKDConfig]:
    return lambda **changes: SinKDConfig(
        str(tmp_path / "run"),
        **{"use_cpu": True, "report_to": "none", "student_layers": 2, "layer_selection_rows": 4, **changes},
    )


def with_an_idle_layer(model: Any, which: int) -> Any:
    """The model with its layers made loud, but for one that adds nothing."""
    with torch.no_grad():
        for index, layer in enumerate(model.model.layers):
            for name, weight in layer.named_parameters():
                if weight.ndim == 2:
                    weight.mul_(0 if index == which and name.endswith(("o_proj.weight", "down_proj.weight")) else 6)
    return model


# ---- settings


@pytest.mark.parametrize(
    ("given", "text", "numbers"),
    [
        ("0, 2,5", "0, 2,5", (3, None)),
        ([0, 2], "0,2", (2, None)),
        ([[0, 2, 3], [0]], "0,2,3; 0", (3, 1)),
        ("1;0,1", "1;0,1", (1, 2)),
    ],
)
def test_a_list_says_how_many_layers(args: Any, given: Any, text: str, numbers: tuple[int, int | None]) -> None:
    made = args(layer_selection=given, student_layers=None)
    assert made.layer_selection == text
    assert (made.student_layers, made.student_decoder_layers) == numbers
    made.check()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer_selection": "0,2", "student_layers": 3}, "student_layers is 3, but layer_selection lists 2 layers"),
        (
            {"layer_selection": "0,1;0", "student_decoder_layers": 2},
            "student_decoder_layers is 2, but",
        ),
        ({"layer_selection": "0,1", "student_decoder_layers": 1}, "for encoder and decoder alike"),
        ({"layer_selection": "2,0"}, "not each larger than the one before"),
        ({"layer_selection": "1,1"}, "give each layer once"),
        ({"layer_selection": "greed"}, "Did you mean 'greedy'"),
        ({"layer_selection": "0;1;2"}, "it takes even, influence, greedy, or a list such as 0,2,5"),
        ({"layer_selection": "0,-1"}, "it takes even"),
        ({"layer_selection": [0, "x"]}, "it takes even"),
        ({"layer_selection": []}, "layer_selection is"),
        ({"layer_selection": "influence", "student_layers": None}, "set student_layers, too"),
        ({"layer_selection_rows": 0}, "layer_selection_rows is 0"),
    ],
)
def test_settings_that_say_no_layers(args: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        args(**changes)


# ---- choosing


@pytest.mark.parametrize("selection", ["influence", "greedy"])
def test_the_idle_layer_goes(args: Any, tiny_causal_lm: Any, tiny_tokenizer: Any, selection: str) -> None:
    teacher = with_an_idle_layer(tiny_causal_lm(layers=3), 1).train()
    found = choose_layers(teacher, args(layer_selection=selection), tiny_tokenizer, opinions())
    assert found.kept == {"": [0, 2]}
    assert found.rows == 4
    assert all(module.training for module in teacher.modules())


def test_the_change_of_answers_is_the_kl_divergence_over_the_choices(
    args: Any, tiny_causal_lm: Any, tiny_tokenizer: Any
) -> None:
    teacher, rows = with_an_idle_layer(tiny_causal_lm(layers=3), 3).double(), opinions(4)
    found = choose_layers(teacher, args(layer_selection="greedy"), tiny_tokenizer, rows)
    ((_, dropped, change),) = found.drops

    def answers(model: Any) -> torch.Tensor:
        """Log-probabilities of the choices of each row, token by token."""
        scores = []
        for row in rows:
            prompt = tiny_tokenizer(row["prompt"])["input_ids"]
            sums = []
            for choice in row["choices"]:
                ids = tiny_tokenizer(choice)["input_ids"]
                log_probs = model(torch.tensor([prompt + ids])).logits[0].double().log_softmax(-1)
                sums.append(sum(log_probs[len(prompt) - 1 + t, token] for t, token in enumerate(ids)))
            scores.append(torch.stack(sums))
        return torch.stack(scores).log_softmax(-1)

    with torch.no_grad():
        own, its = answers(teacher), answers(select_layers(teacher, [i for i in range(3) if i != dropped]))
    assert change == pytest.approx(float((own.exp() * (own - its)).sum(-1).mean()), rel=1e-6)


@pytest.mark.parametrize("selection", ["influence", "greedy"])
@pytest.mark.parametrize(("family", "head"), [("bert", "SequenceClassification"), ("roberta", "MaskedLM"), ("t5", "")])
def test_every_kind_of_model(
    args: Any, tiny_model: Any, marked_tokenizer: Any, selection: str, family: str, head: str
) -> None:
    model = tiny_model(family, head, layers=3)
    found = choose_layers(model, args(layer_selection=selection), marked_tokenizer(family), opinions())
    assert all(len(kept) == 2 for kept in found.kept.values())
    assert [*found.kept] == (["encoder", "decoder"] if family == "t5" else [""])


def test_a_regression_is_asked_for_its_numbers(args: Any, tiny_model: Any, marked_tokenizer: Any) -> None:
    model = tiny_model("bert", layers=3, num_labels=1)
    nn.init.normal_(model.classifier.weight)
    found = choose_layers(model, args(layer_selection="greedy"), marked_tokenizer("bert"), regression_rows())
    ((_, _, change),) = found.drops
    assert 0 < change < 100
    unlabelled = regression_rows().map(lambda row: {"label": -1, "target": None, "completion": ""})
    for selection in ("influence", "greedy"):
        again = choose_layers(model, args(layer_selection=selection), marked_tokenizer("bert"), unlabelled)
        assert selection == "influence" or again == found


def test_answers_of_free_text_are_compared_token_by_token(args: Any, tiny_causal_lm: Any, tiny_tokenizer: Any) -> None:
    rows = Dataset.from_list([{"prompt": "question:", "completion": f" {word} film"} for word in ("good", "bad")])
    teacher = with_an_idle_layer(tiny_causal_lm(layers=3), 2)
    found = choose_layers(teacher, args(layer_selection="greedy", student_layers=1), tiny_tokenizer, rows)
    assert found.drops[0] == ("", 2, pytest.approx(0, abs=1e-6))
    assert found.rows == 2


def test_rows_are_spread_over_all_and_may_have_no_label(args: Any, tiny_causal_lm: Any, tiny_tokenizer: Any) -> None:
    rows = opinions(8).map(lambda row: {"label": -1, "completion": ""})
    seen: list[str] = []

    class Watched:
        column_names = rows.column_names

        def __len__(self) -> int:
            return len(rows)

        def __getitem__(self, index: int) -> Any:
            seen.append(rows[index]["id"])
            return rows[index]

    for selection in ("influence", "greedy"):
        settings = args(layer_selection=selection)
        assert len(choose_layers(tiny_causal_lm(layers=3), settings, tiny_tokenizer, Watched()).kept[""]) == 2
    assert seen == 2 * ["opinion-0", "opinion-2", "opinion-4", "opinion-6"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (None, "reads training rows, and none are given"),
        (Dataset.from_list([{"prompt_ids": [3], "answer_ids": [4]}]), "these have the columns .*prompt_ids"),
    ],
)
def test_rows_that_cannot_be_read(
    args: Any, tiny_causal_lm: Any, tiny_tokenizer: Any, rows: Any, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        choose_layers(tiny_causal_lm(layers=3), args(layer_selection="greedy"), tiny_tokenizer, rows)


def test_a_quantised_model_is_not_run(args: Any, tiny_causal_lm: Any, tiny_tokenizer: Any, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig

    tiny_causal_lm(layers=3).save_pretrained(tmp_path / "model")
    model = load_model(tmp_path / "model", quantization_config=BitsAndBytesConfig(load_in_4bit=True))
    with pytest.raises(InputError, match="a quantised model may repack its weights"):
        choose_layers(model, args(layer_selection="influence"), tiny_tokenizer, opinions())
    assert choose_layers(model, args(layer_selection="0,2"), None, None).kept == {"": [0, 2]}


@pytest.mark.parametrize("selection", ["influence", "greedy"])
def test_an_adapter_counts(args: Any, tiny_causal_lm: Any, tiny_tokenizer: Any, selection: str) -> None:
    teacher = with_adapter(with_an_idle_layer(tiny_causal_lm(layers=3), 1))
    before = {name: weight.clone() for name, weight in teacher.state_dict().items()}
    found = choose_layers(teacher, args(layer_selection=selection), tiny_tokenizer, opinions())
    whole = select_layers(teacher, 3)
    assert found.kept == choose_layers(whole, args(layer_selection=selection), tiny_tokenizer, opinions()).kept
    assert all(torch.equal(weight, before[name]) for name, weight in teacher.state_dict().items())


def test_a_new_head_is_warned_of(
    args: Any, tiny_model: Any, marked_tokenizer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    model = tiny_model("bert", layers=3)
    set_origin(model, None, ("classifier",))
    choose_layers(model, args(layer_selection="influence"), marked_tokenizer("bert"), opinions())
    assert "random weights" not in caplog.text
    choose_layers(model, args(layer_selection="greedy"), marked_tokenizer("bert"), opinions())
    assert "classifier of the model starts with random weights" in caplog.text


def test_what_the_first_process_chose_holds_for_all(
    args: Any, tiny_causal_lm: Any, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, settings = tiny_causal_lm(layers=3), args(layer_selection="influence")
    own = choose_layers(model, settings, tiny_tokenizer, opinions())
    monkeypatch.setattr(Ranks, "of", lambda group=None: Ranks(1, 2))
    monkeypatch.setattr(Ranks, "merged", lambda self, found: {0: "of the first", **found})
    assert choose_layers(model, settings, tiny_tokenizer, opinions()) == "of the first"
    assert own.kept[""] != []


def test_a_model_without_weights_is_cut_in_the_same_number(args: Any, tiny_causal_lm: Any, capsys: Any) -> None:
    model = tiny_causal_lm(layers=4).to("meta")
    student = cut_student(model, args(layer_selection="greedy", student_layers=3), None, None)
    assert len(student.model.layers) == 3
    assert capsys.readouterr().err == ""
    with pytest.raises(InputError, match="The index 9 of the layers"):
        cut_student(model, args(layer_selection="0,9"), None, None)


# ---- a run


def trainer_of(teacher: Any, settings: SinKDConfig, tokenizer: Any) -> SinKDTrainer:
    return SinKDTrainer(teacher_model=teacher, args=settings, train_dataset=opinions(), processing_class=tokenizer)


def test_the_student_has_these_layers_and_says_so(
    args: Any, tiny_causal_lm: Any, tiny_tokenizer: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher = with_an_idle_layer(tiny_causal_lm(layers=4), 2)
    trainer = trainer_of(teacher, args(layer_selection="influence", student_layers=3), tiny_tokenizer)
    said = capsys.readouterr().err
    assert said.count("The student has the layers 0, 1, 3 of 4, those that most change") == 1
    assert same_weights(trainer.model.model.layers[2], teacher.model.layers[3])
    trainer.save_model(str(tmp_path / "student"))
    stored = json.loads((tmp_path / "student" / "sinkd_student.json").read_text())["layers"]
    assert stored["kept"] == {"layers": [0, 1, 3]}
    assert len(stored["influence"]["layers"]) == 4
    assert stored["in_words"] in " ".join(said.split())
    loaded = load_model(tmp_path / "student")
    assert torch.equal(probe_outputs(loaded), probe_outputs(trainer.model))
    assert noted_layers(loaded) is None


def test_a_run_that_goes_on_has_the_same_layers_or_is_refused(
    args: Any, tiny_causal_lm: Any, tiny_tokenizer: Any
) -> None:
    teacher = with_an_idle_layer(tiny_causal_lm(layers=4), 2)
    settings = {"layer_selection": "greedy", "student_layers": 3}
    first, again = (trainer_of(teacher, args(**settings), tiny_tokenizer) for _ in range(2))
    assert same_weights(first.model, again.model)
    stored = json.loads(json.dumps(run_facts(first)))
    assert differences(stored, run_facts(again))[0] == []
    listed = trainer_of(teacher, args(layer_selection="0,1,3", student_layers=None), tiny_tokenizer)
    assert differences(stored, run_facts(listed))[0] == []
    even = trainer_of(teacher, args(student_layers=3), tiny_tokenizer)
    refused = differences(stored, run_facts(even))[0]
    assert [one for one in refused if "0,1,3 in the checkpoint, 0,2,3 now; to have the former, list them" in one]


def test_a_model_of_one_stack_has_no_decoder_layers(args: Any, tiny_causal_lm: Any) -> None:
    for changes in ({"student_decoder_layers": 1}, {"layer_selection": "0,1;0"}):
        with pytest.raises(InputError, match="has one stack of layers, so that nothing can be said of a decoder"):
            choose_layers(tiny_causal_lm(layers=3), args(**changes), None, None)
