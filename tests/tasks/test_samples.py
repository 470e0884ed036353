"""Every benchmark task on small files of its original format: exact prompts, answers, and the hub's rows alike."""

from pathlib import Path

import datasets
import pytest

from sinkd_llm.tasks import list_tasks, load_task
from tests.support.samples import OTHERS, SAMPLES

CASES = [(name, prompt) for name, sample in SAMPLES.items() for prompt in sample.prompts]


def test_every_prompt_has_a_sample() -> None:
    prompts = {prompt for info in list_tasks() if info.name not in OTHERS for prompt in info.prompts}
    assert prompts == {prompt for _, prompt in CASES}


@pytest.mark.parametrize(("name", "prompt"), CASES)
def test_local_files(name: str, prompt: str, tmp_path: Path) -> None:
    sample = SAMPLES[name]
    path = sample.write(tmp_path)
    task = load_task(prompt)
    data = task.load("validation", data_dir=tmp_path)
    assert data["prompt"][0] == sample.prompts[prompt]
    assert list(data["completion"]) == sample.completions[prompt]
    assert data["choices"][0] == (sample.choices or list(task.choices))
    assert set(data.column_names) == {
        "id",
        "prompt",
        "completion",
        "choices",
        "label",
        *sample.columns,
        *task.text_columns,
    }
    for column, values in sample.columns.items():
        assert list(data[column]) == values
    assert [row["choices"].index(row["completion"]) for row in data] == list(data["label"])
    # The folder of the task itself is taken too.
    assert list(task.load("validation", data_dir=path.parent)["id"]) == list(data["id"])


@pytest.mark.parametrize(
    ("name", "texts"),
    [
        ("mnli", ("Nobody came.", "Someone came.")),
        ("cola", ("She sings.",)),
        ("ag_news", ('T, "x" D.',)),
        ("copa", ()),
    ],
)
def test_what_a_classification_head_reads(name: str, texts: tuple[str, ...], tmp_path: Path) -> None:
    SAMPLES[name].write(tmp_path)
    task = load_task(name)
    assert task.text_columns == ("text", "text_pair")[: len(texts)]
    row = task.load("validation", data_dir=tmp_path)[0]
    assert tuple(row[column] for column in task.text_columns) == texts


@pytest.mark.parametrize(("name", "prompt"), CASES)
def test_the_hub_gives_the_same(name: str, prompt: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    SAMPLES[name].write(tmp_path)
    task = load_task(prompt)
    local = task.load("validation", data_dir=tmp_path)
    hub = datasets.Dataset.from_list(SAMPLES[name].hub)
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: hub)
    assert task.load("validation").to_dict() == local.to_dict()


@pytest.mark.parametrize("name", SAMPLES)
def test_perfect_predictions_score_one(name: str, tmp_path: Path) -> None:
    SAMPLES[name].write(tmp_path)
    task = load_task(name)
    data = task.load("validation", data_dir=tmp_path)
    scores = task.compute_metrics(data["label"], data["label"], rows=data)
    assert tuple(scores) == task.metric_names
    # STS-B's steps of 0.2 are not the real scores.
    assert scores == pytest.approx(dict.fromkeys(scores, 1.0), abs=1e-3)


@pytest.mark.parametrize("name", ["mnli", "sglue_rte"])
def test_other_names_of_files_and_folders(name: str, tmp_path: Path) -> None:
    """Copies of the benchmarks differ in these."""
    path = SAMPLES[name].write(tmp_path)
    expected = list(load_task(name).load("validation", data_dir=tmp_path)["id"])
    if name == "mnli":
        path.rename(path.with_name("dev.tsv"))
    else:
        path.parent.rename(tmp_path / "RTE-superglue")
    assert list(load_task(name).load("validation", data_dir=tmp_path)["id"]) == expected
