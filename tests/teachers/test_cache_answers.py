"""A cache of answers knows which answers it holds."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Value

from sinkd_llm.errors import InputError
from sinkd_llm.teachers import CachedTeacher
from sinkd_llm.teachers.cache.answers import write_answers
from sinkd_llm.teachers.cache.writer import CacheWriter
from sinkd_llm.teachers.choices import name_key
from sinkd_llm.teachers.questions import Answers, AnswerSet, Question

ASKED = [Question(f"row {i}", "", (" no", " yes")) for i in range(6)]
NAMES = [question.name for question in ASKED]
ROWS = Dataset.from_dict(
    {"example_id": NAMES, "row_print": list(range(6))},
    features=Features({"example_id": Value("string"), "row_print": Value("int64")}),
)


def answers(*choices: int | None) -> Answers:
    said = Answers()
    for question, choice in zip(ASKED, choices, strict=True):
        if choice is not None:
            said.add_answer(question, choice)
    return said


def counts(*times: tuple[float, float], paired: bool = False) -> list[AnswerSet]:
    """Of the groups of two rows each."""
    return [
        AnswerSet((NAMES[2 * i], NAMES[2 * i + 1]), np.array([[0.0, -9], [-9, 0]], np.float32), np.array(pair), paired)
        for i, pair in enumerate(times)
    ]


def write(folder: Path, said: Any, **more: Any) -> None:
    write_answers(folder, ROWS, ASKED, said, task="made-up", teacher="answers.csv", **more)


def chosen(folder: Path) -> dict[str, int]:
    return {name: int(scores.argmax()) for name, scores in CachedTeacher(folder).answers(NAMES).items()}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (answers(0, 1, 0, 1, 0, 1), answers(0, 1, 0, 1, 0, 0)),
        (answers(0, 1, 0, 1, 0, 1), answers(None, 1, 0, 1, 0, 1)),
        (answers(0, 1, 0, 1, 0, None), answers(1, 1, 0, 1, 0, 1)),  # more of them, and one is another
        (counts((2, 0.5), (1, 1)), counts((0.5, 2), (1, 1))),
        (counts((1, 1)), counts((1, 1), paired=True)),
    ],
)
def test_other_answers_are_refused_and_replaced_with_overwrite(before: Any, after: Any, tmp_path: Path) -> None:
    write(tmp_path / "cache", before)
    files = {file.name: file.read_bytes() for file in (tmp_path / "cache").iterdir() if file.is_file()}
    with pytest.raises(InputError, match=r"holds a cache of something else \(.*--overwrite to replace it"):
        write(tmp_path / "cache", after)
    assert {file.name: file.read_bytes() for file in (tmp_path / "cache").iterdir() if file.is_file()} == files
    write(tmp_path / "cache", after, overwrite=True)
    write(tmp_path / "new", after)
    for name in ("index.safetensors", "shard-00000.safetensors"):
        assert (tmp_path / "cache" / name).read_bytes() == (tmp_path / "new" / name).read_bytes()


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (answers(0, None, 0, None, 0, 1), answers(0, 1, 0, 1, 0, 1)),
        (counts((2, 1)), counts((2, 1), (1, 3))),
    ],
)
def test_more_answers_take_the_place_of_fewer(before: Any, after: Any, tmp_path: Path) -> None:
    write(tmp_path / "cache", before)
    write(tmp_path / "cache", after)
    write(tmp_path / "new", after)
    for name in ("index.safetensors", "shard-00000.safetensors"):
        assert (tmp_path / "cache" / name).read_bytes() == (tmp_path / "new" / name).read_bytes()


def test_a_folder_that_no_user_has_named_takes_other_answers(tmp_path: Path) -> None:
    write(tmp_path / "cache", answers(0, 0, 0, 0, 0, 0))
    write(tmp_path / "cache", answers(1, 1, 1, 1, 1, None), own_folder=True)
    assert [*chosen(tmp_path / "cache").values()] == [1] * 5
    (tmp_path / "cache" / "manifest.json").write_text('{"shards": ')
    write(tmp_path / "cache", answers(0, 1, 0, 1, 0, 1), own_folder=True)
    assert [*chosen(tmp_path / "cache").values()] == [0, 1] * 3


def test_what_was_begun_with_other_answers_is_not_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(writer: CacheWriter, score: Any = None) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(CacheWriter, "finish", killed)
        with pytest.raises(KeyboardInterrupt):
            write(tmp_path / "cache", answers(0, 0, 0, 0, 0, 0))
    with pytest.raises(InputError, match=r"teacher\.answers: .* other answers to the rows\); .*--overwrite"):
        write(tmp_path / "cache", answers(None, 1, 1, 1, 1, 1))
    write(tmp_path / "cache", answers(None, 1, 1, 1, 1, 1), overwrite=True)
    assert chosen(tmp_path / "cache") == dict.fromkeys(NAMES[1:], 1)


def test_the_same_answers_with_another_score_have_this_score(tmp_path: Path) -> None:
    score = {"rows": "x", "predictions": [0], "keys": ["00"], "name": "teacher", "metrics": {"acc": 0.0}}
    said = answers(0, 1, 0, 1, 0, 1)
    write(tmp_path / "cache", said, score=score)
    write(tmp_path / "cache", said, score={**score, "metrics": {"acc": 1.0}})
    assert CachedTeacher(tmp_path / "cache").recorded_score == {**score, "metrics": {"acc": 1.0}}


def test_what_a_row_says_is_recorded_beside_its_id(tmp_path: Path) -> None:
    keys = [name_key(name).hex() for name in ("0", "1")]
    score = {"rows": "x", "predictions": [0, 1], "keys": keys, "prints": [5, 7], "name": "teacher", "metrics": {}}
    batch = {"example_id": ["0", "1"], "row_print": [5, 8], "label": torch.zeros(2)}
    batch["trees"] = [SimpleNamespace(choices=[(1,), (2,)])] * 2
    write(tmp_path / "cache", answers(0, 1, 0, 1, 0, 1), score=score)
    assert CachedTeacher(tmp_path / "cache").choices(batch).tolist() == [0, -1]
    del score["prints"]  # of an earlier version: the ids may be those of other rows
    write(tmp_path / "cache", answers(0, 1, 0, 1, 0, 1), score=score)
    assert CachedTeacher(tmp_path / "cache").choices(batch).tolist() == [-1, -1]


def test_a_cache_of_an_earlier_version_is_kept_if_it_says_the_same(tmp_path: Path) -> None:
    def forget() -> None:
        manifest = json.loads((tmp_path / "cache" / "manifest.json").read_text())
        del manifest["teacher"]["answers"]
        (tmp_path / "cache" / "manifest.json").write_text(json.dumps(manifest))

    write(tmp_path / "cache", answers(0, 1, 0, 1, 0, 1))
    forget()
    assert len(chosen(tmp_path / "cache")) == 6  # it can be trained from
    with pytest.raises(InputError, match="an earlier version did not record them"):
        write(tmp_path / "cache", answers(1, 1, 0, 1, 0, 1))
    write(tmp_path / "cache", answers(0, 1, 0, 1, 0, 1))
    assert CachedTeacher(tmp_path / "cache").manifest.teacher.answers is not None
