"""`check_task` and `sinkd tasks check`: what they count, and what they call broken."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sinkd_llm.cli import main
from sinkd_llm.cli.tasks import _show_splits
from sinkd_llm.errors import InputError
from sinkd_llm.inputs.answer_choices import verbalizer_ids
from sinkd_llm.inputs.decoder_only import DecoderOnlyTokenizer
from sinkd_llm.inputs.encoder_decoder import EncoderDecoderTokenizer
from sinkd_llm.runs.task_check import Range, SplitCheck, TaskCheck, check_task
from sinkd_llm.tasks import Task


@pytest.fixture
def make_checked(make_task, tmp_path: Path) -> Callable[..., Task]:
    """A task over the given labels of the train split, with one validation row."""

    def make(labels: list[Any], **changes: Any) -> Task:
        rows = [{"text": "a " * (i + 1), "label": label, "options": ["no"][: i + 1]} for i, label in enumerate(labels)]
        (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (tmp_path / "validation.jsonl").write_text('{"text": "other", "label": 1, "options": ["no", "yes"]}\n')
        return make_task(**changes)

    return make


def test_counts(make_checked, tiny_tokenizer) -> None:
    check = check_task(make_checked([1, 0, 1, 1]), tiny_tokenizer)
    train, validation = check.splits
    assert (train.split, train.num_rows, validation.num_rows) == ("train", 4, 1)
    assert train.labels == {"no": 1, "yes": 3}
    assert train.num_choices == Range(2, 2, 2)
    lengths = [len(tiny_tokenizer(f"Q: {'a ' * n}\nA:")["input_ids"]) for n in (1, 2, 3, 4)]
    assert train.prompt_tokens == Range(lengths[0], round((lengths[1] + lengths[2]) / 2), lengths[3])
    assert train.answer_tokens == Range(1, 1, 1)
    assert train.example["completion"] == " yes"
    assert check.problems == []


def test_without_a_tokenizer(make_checked) -> None:
    check = check_task(make_checked([1, 0]), splits=["train"])
    assert [found.split for found in check.splits] == ["train"]
    assert check.splits[0].prompt_tokens is None
    assert (check.problems, check.warnings) == ([], [])


@pytest.mark.parametrize(
    ("labels", "changes", "problem"),
    [
        ([1, None, 0], {}, "1 of 3 rows of the train split have no label"),
        ([1, 0], {"doc_to_choice": ["negative", "neg"]}, None),
        ([1, 0], {"doc_to_choice": ["unlike", "until"]}, None),  # both begin with "un", and are ranked by all tokens
        ([1, 0], {"doc_to_choice": ["no yes", "no  yes"]}, None),
    ],
)
def test_problems(labels, changes, problem: str | None, make_checked, tiny_tokenizer) -> None:
    check = check_task(make_checked(labels, **changes), tiny_tokenizer)
    assert len(check.problems) == (problem is not None)
    assert problem is None or problem in check.problems[0]


@pytest.mark.parametrize(
    ("labels", "changes", "warning"),
    [
        ([1, 1], {"metric_list": [{"metric": "mcc"}]}, "Every row of the train split has the answer 'yes'"),
        ([0, 1], {"doc_to_choice": ["no", "yes", "maybe"]}, "No row of the train split has the answer 'maybe'"),
        ([0], {"doc_to_choice": "options"}, "Some rows of the train split have one choice only"),
    ],
)
def test_warnings(labels, changes, warning: str, make_checked) -> None:
    warnings = check_task(make_checked(labels, **changes), splits=["train"]).warnings
    assert len(warnings) == 1
    assert warning in warnings[0]


def test_shared_prompts(make_checked, tmp_path: Path) -> None:
    task = make_checked([0, 1])
    (tmp_path / "validation.jsonl").write_text((tmp_path / "train.jsonl").read_text())
    assert check_task(task).warnings == ["2 prompts of the validation split are also in the train split."]


def test_generation(make_task, tmp_path: Path, tiny_tokenizer) -> None:
    for split in ("train", "validation"):
        (tmp_path / f"{split}.jsonl").write_text(json.dumps({"text": split, "label": "yes no"}) + "\n")
    check = check_task(make_task(output_type="generate_until", doc_to_choice=None), tiny_tokenizer)
    assert check.splits[0].labels == {}
    assert check.splits[0].num_choices is None
    assert check.splits[0].answer_tokens == Range(3, 3, 3)  # with the end-of-sequence token
    assert (check.problems, check.warnings) == ([], [])


def test_unreadable_rows_are_an_error(make_checked) -> None:
    with pytest.raises(InputError, match="The label 5 of line 1"):
        check_task(make_checked([5]))


def test_ranges() -> None:
    assert str(Range.of([3, 1, 2])) == "1 / 2 / 3"
    assert str(Range.of([2, 2])) == "2"
    assert Range.of([]) is None


def test_command_line(
    make_checked,
    tiny_tokenizer,
    tiny_causal_lm,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)  # set by xdist; without it, a pipe is wide enough not to be folded at
    folder = tmp_path / "model"
    tiny_tokenizer.save_pretrained(folder)
    tiny_causal_lm().save_pretrained(folder)
    path = str(make_checked([1, 0]).path)
    arguments = ["tasks", "check", path, "--model_name_or_path", str(folder)]
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    assert "no 1 (50%), yes 1 (50%)" in shown
    assert "→ ' yes'" in shown
    assert "can be trained on" in shown
    make_checked([1, None])
    assert main(arguments) == 2
    output = capsys.readouterr()
    assert "no label 1 (50%)" in output.out
    assert "not fit to train on. 1 of 2 rows of the train split have no label" in output.err
    assert "A teacher can answer them: --allow_unlabelled true, also here." in " ".join(output.err.split())
    for words in (["--allow_unlabelled"], ["--allow_unlabelled", "true"]):
        assert main([*arguments, *words]) == 0
        assert "warning: 1 of 2 rows of the train split have no label (-1)." in capsys.readouterr().out
    make_checked([1, 7])
    assert main([*arguments, "--split", "validation"]) == 0
    assert main(arguments) == 2
    assert "The label 7 of line 2" in capsys.readouterr().err


def test_the_table_fits_80_columns_and_nothing_is_lost(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ("much-longer-than-a-column-of-the-table-could-be-and-without-a-space", "an answer of several words", "no")
    labels = {name: 111_111 * (i + 1) for i, name in enumerate(names)}
    ranges = Range(2, 10, 100), Range(1024, 2048, 10_240), Range(1000, 1001, 20_480)
    split = SplitCheck("validation", 1_234_567, labels, *ranges, example={})
    monkeypatch.setenv("COLUMNS", "80")
    _show_splits(TaskCheck([split]))
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    row = "validation 1,234,567 2 / 10 / 100 1024 / 2048 / 10240 1000 / 1001 / 20480"
    assert {*row.split()} <= {*" ".join(lines).split()}
    shares = f"{names[2]} 333333 (27%), {names[1]} 222222 (18%), {names[0]} 111111 (9%)"
    assert shares.replace(" ", "") in "".join(lines).replace(" ", "")


def test_labels_are_folded_between_one_another(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ("World", "Sports", "Business", "Sci/Tech and more")
    ranges = Range(4, 4, 4), Range(17, 57, 227), Range(1, 1, 1)
    split = SplitCheck("train", 1500, dict.fromkeys(names, 375), *ranges, example={})
    monkeypatch.setenv("COLUMNS", "60")
    _show_splits(TaskCheck([split], classifies=True))
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert "text tokens" in "".join(lines)
    assert "answer" not in "".join(lines)
    place = lines.index("labels of train: World 375 (25%), Sports 375 (25%),")
    assert lines[place + 1] == "  Business 375 (25%), Sci/Tech and more 375 (25%)"


def test_a_row_is_shown_as_a_classification_head_reads_it(
    make_checked, save_model, tmp_path: Path, capsys: pytest.CaptureFixture[str], marked_tokenizer
) -> None:
    path = str(make_checked([1, 0], metadata={"texts": ["text"]}).path)
    model = save_model("bert")
    assert checked(path, model, "--model_kind", "sequence-classification") == 0
    shown = capsys.readouterr().out
    assert "Q:" not in shown
    assert "    no\n  → yes\n" in shown
    length = [len(marked_tokenizer("bert")("a " * n)["input_ids"]) for n in (1, 2)]
    assert f"{length[0]} / " in shown
    # As a masked language model it reads the prompt.
    assert checked(path, model, "--model_kind", "masked-lm") == 0
    assert "Q:" in capsys.readouterr().out


def test_command_line_lists_and_shows_every_kind(capsys: pytest.CaptureFixture[str], data_dir: Path) -> None:
    assert main(["tasks"]) == 0
    shown = capsys.readouterr().out
    assert "0.0 / 0.2 / … / 5.0" in shown
    assert "mnli_mismatched_reader" in shown
    assert main(["tasks", "show", "instruct", "--data_dir", str(data_dir / "instruct-rasbt"), "--limit", "1"]) == 0
    assert "→ ' She had been singing in the choir.'" in capsys.readouterr().out


@pytest.fixture
def save_model(tmp_path: Path, tiny_model, marked_tokenizer) -> Callable[..., str]:
    """A folder with a tiny encoder-decoder or encoder that lacks its weights: they must not be read."""
    from safetensors.torch import save_file

    def save(family: str, head: str = "MaskedLM", **changes: Any) -> str:
        folder = tmp_path / family
        tiny_model(family, head, **changes).save_pretrained(folder)
        marked_tokenizer(family).save_pretrained(folder)
        save_file({"nothing": torch.zeros(1, 4096)}, folder / "model.safetensors")
        return str(folder)

    return save


def checked(path: str, model: str, *more: str) -> int:
    return main(["tasks", "check", path, "--model_name_or_path", model, *more])


def test_words_for_a_mask_have_one_token(make_checked, save_model, capsys: pytest.CaptureFixture[str]) -> None:
    model = save_model("bert")
    path = str(make_checked([1, 0], doc_to_choice=["no", "certainly"]).path)
    assert checked(path, model, "--model_kind", "masked-lm") == 2
    assert "a masked language model gives one token at the mask" in capsys.readouterr().err
    # As a new classification head, which has no words, the same task is fine.
    assert checked(path, model) == 0
    # As a decoder would be trained it is fine too.
    assert "can be trained on" in capsys.readouterr().out
    path = str(make_checked([1, 0]).path)
    assert checked(path, model, "--model_kind", "masked-lm") == 0


def test_a_head_has_the_same_classes_in_every_row(
    make_checked, save_model, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(make_checked([0], doc_to_choice="options").path)
    rows = [{"text": "a", "label": 0, "options": options} for options in (["no", "yes"], ["good", "bad"])]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert checked(path, save_model("bert"), "--model_kind", "sequence-classification") == 2
    assert "different lists of choices, but a classification head" in capsys.readouterr().err


def test_an_encoder_decoder_reads_prompt_and_answer_apart(make_checked, save_model, marked_tokenizer) -> None:
    # Behind a space these begin with different tokens, at the beginning of a text with the same one.
    tokenizer = marked_tokenizer("t5")
    words = ["great", "green"]
    first = [
        [tokenizer(before + word, add_special_tokens=False)["input_ids"][0] for word in words] for before in (" ", "")
    ]
    assert len({*first[0]}) == 2
    assert len({*first[1]}) == 1
    path = str(make_checked([1, 0], doc_to_choice=words).path)
    assert checked(path, save_model("t5")) == 0
    rows = make_checked([1, 0], doc_to_choice=words).load("train")
    with pytest.raises(InputError, match=r"'great' and 'green' begin with the same token .* vocabulary=.verbalizers"):
        verbalizer_ids(rows, EncoderDecoderTokenizer(tokenizer))
    assert len(verbalizer_ids(rows, DecoderOnlyTokenizer(tokenizer))) >= 2


def test_prompts_beyond_the_context_are_a_warning(
    make_checked, save_model, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(make_checked([1, 0] * 40).path)
    assert checked(path, save_model("bert", max_position_embeddings=48), "--model_kind", "masked-lm") == 0
    assert "prompts are longer than the model reads (48 tokens) and lose their beginning" in capsys.readouterr().out


def test_what_a_run_would_refuse_is_a_problem(make_checked, tiny_tokenizer) -> None:
    task = make_checked([1, 0], validation_split=None)
    assert "has no validation split: validation_split is not set" in check_task(task, tiny_tokenizer).problems[0]
    task = make_checked([1, 0], output_type="generate_until", doc_to_choice=None, generation_kwargs={"untill": ["x"]})
    with pytest.raises(InputError, match="generation_kwargs of the task 'mine' has the key 'untill'"):
        check_task(task, tiny_tokenizer)


def test_every_row_is_tokenised(make_task, tmp_path: Path, tiny_tokenizer) -> None:
    lines = [json.dumps({"text": f"a {i}", "label": i % 2, "options": ["no", f"yes {i}"]}) for i in range(1_500)]
    lines[777] = json.dumps({"text": "a", "label": 1, "options": ["no", "yes" * 100]})
    for split in ("train", "validation"):
        (tmp_path / f"{split}.jsonl").write_text("\n".join(lines))
    check = check_task(make_task(doc_to_choice="options"), tiny_tokenizer)
    assert check.splits[0].answer_tokens is not None
    assert check.splits[0].answer_tokens.most > 50
