"""`train[:80%]`: which rows a text names, as `datasets` counts them."""

import datasets
import pytest

from sinkd_llm.errors import InputError
from sinkd_llm.row_splits import Part, indices_of, is_part, names_in, parts_of


@pytest.mark.parametrize(
    "spec", ["train[:80%]", "train[80%:]", "train[3:7]", "train[-4:]", "train[:-25%]", "train[10%:50%]", "train[5:]"]
)
def test_the_rows_are_those_of_datasets(spec, tmp_path):
    rows = datasets.Dataset.from_dict({"place": list(range(17))})
    file = tmp_path / "rows.jsonl"
    rows.to_json(file)
    theirs = datasets.load_dataset("json", data_files={"train": str(file)}, split=spec, cache_dir=str(tmp_path / "c"))
    assert indices_of(parts_of(spec, {"train": 17})) == theirs["place"][:]
    assert is_part(spec)
    assert names_in(spec) == ("train",)


def test_several_splits():
    assert parts_of("train[:2]+dev", {"train": 5, "dev": 3}) == [Part("train", 0, 2), Part("dev", 0, 3)]
    assert names_in("train[:2] + dev + train[4:]") == ("train", "dev")
    assert not is_part("train")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("train[:80", "cannot be read"),
        ("train[:120%]", "cannot be read"),
        ("train[80%]", "cannot be read"),
        ("train[9:]", "holds none of the 5 rows of train"),
    ],
)
def test_what_names_no_rows_is_refused_with_an_example(spec, message):
    with pytest.raises(InputError, match=rf"{message}.*write a split as train\[:80%\]"):
        parts_of(spec, {"train": 5})
