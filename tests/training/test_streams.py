"""A stream of rows is written to disk once for a run, in its order, with what is needed of it."""

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, Features, IterableDataset, Value

from sinkd_llm import SinKDConfig
from sinkd_llm.errors import InputError
from sinkd_llm.training.streams import stored_streams
from tests.support.rows import opinions


def settings(folder: Path, **changes: Any) -> SinKDConfig:
    return SinKDConfig(str(folder / "out"), use_cpu=True, report_to="none", **changes)


def streamed(rows: Callable[[], Iterator[dict[str, Any]]], **options: Any) -> IterableDataset:
    return IterableDataset.from_generator(rows, **options)


def test_all_rows_of_a_stream_are_the_rows(tmp_path: Path, caplog: Any) -> None:
    rows = opinions(12)
    train, evaluation = stored_streams(settings(tmp_path), streamed(lambda: iter(rows)), opinions(3))
    assert isinstance(train, Dataset)
    assert train.to_list() == rows.to_list()
    assert evaluation.to_list() == opinions(3).to_list()
    assert "train_dataset is a stream, of which 12 rows are kept in" in caplog.text
    assert [file.name for file in (tmp_path / "out" / "streams").iterdir()] == ["train_dataset.arrow"]


def test_max_steps_says_how_many_rows_are_needed_of_an_endless_stream(tmp_path: Path) -> None:
    drawn = []

    def endless() -> Iterator[dict[str, Any]]:
        for i in itertools.count():
            drawn.append(i)
            yield {"prompt": f"{i} + 1 =", "completion": f" {i + 1}"}

    args = settings(tmp_path, max_steps=5, per_device_train_batch_size=3, gradient_accumulation_steps=2)
    train, _ = stored_streams(args, streamed(endless), None)
    assert train["prompt"] == [f"{i} + 1 =" for i in range(30)]
    assert len(drawn) <= 31


def test_a_stream_is_not_drawn_again_for_a_run_with_a_checkpoint(tmp_path: Path, caplog: Any) -> None:
    turns = itertools.count()

    def other_every_time() -> Iterator[dict[str, Any]]:
        turn = next(turns)
        return iter([{"prompt": f"turn {turn}, row {i}", "completion": " a"} for i in range(4)])

    args, stream = settings(tmp_path), streamed(other_every_time)
    first, _ = stored_streams(args, stream, None)
    second, _ = stored_streams(args, stream, None)
    assert first["prompt"] != second["prompt"]
    (tmp_path / "out" / "checkpoint-1").mkdir()
    caplog.clear()
    again, _ = stored_streams(settings(tmp_path, max_steps=50), stream, None)
    assert again.to_list() == second.to_list()
    assert again._fingerprint == second._fingerprint  # so that its tokens are found again, too
    assert "are used again, for it holds a checkpoint; give another output_dir" in caplog.text


def test_streams_to_evaluate_on(tmp_path: Path) -> None:
    rows = opinions(4)
    parts = {"near": streamed(lambda: iter(rows)), "a/b": rows}
    _, found = stored_streams(settings(tmp_path, max_steps=1), None, parts)
    assert {name: part.to_list() for name, part in found.items()} == dict.fromkeys(parts, rows.to_list())
    _, found = stored_streams(settings(tmp_path, max_steps=1), None, streamed(lambda: iter(rows)))
    assert found.to_list() == rows.to_list()


def test_a_stream_with_features_keeps_them(tmp_path: Path) -> None:
    features = Features({"prompt": Value("string"), "completion": Value("string"), "label": Value("int32")})
    rows = [{"prompt": "a", "completion": " b", "label": None}, {"prompt": "c", "completion": " d", "label": 1}]
    train, _ = stored_streams(settings(tmp_path), streamed(lambda: iter(rows), features=features), None)
    assert train.features == features
    assert train.to_list() == rows


def broken() -> Iterator[dict[str, Any]]:
    yield {"prompt": "a", "completion": " b"}
    raise KeyError("gone")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (lambda: iter([]), "train_dataset is a stream without a row"),
        (broken, r"train_dataset is a stream that fails after 1 rows \(KeyError: 'gone'\)"),
        (
            lambda: iter([{"prompt": "a", "completion": " b"}, {"prompt": 3, "completion": [" b"]}]),
            "whose rows do not fit into one table",
        ),
    ],
)
def test_streams_that_give_no_table(rows: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        stored_streams(settings(tmp_path), streamed(rows), None)
    assert list((tmp_path / "out" / "streams").iterdir()) == []
