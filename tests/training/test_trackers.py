"""`report_to`: what a tracker gets of a run is what metrics.jsonl has, under the same names."""

import json

import pytest

from sinkd_llm import SinKDConfig, SinKDTrainer
from sinkd_llm.errors import InputError
from sinkd_llm.training.callbacks import MetricsFileCallback
from tests.support.rows import opinions

# What a record says of the run's progress, and trackers keep in another way.
PROGRESS = {"step"}


@pytest.fixture
def train(tmp_path, tiny_causal_lm, tiny_tokenizer):
    """Trains two steps with an evaluation, and gives the records of metrics.jsonl, one for each step and kind."""

    def run(tracker, **changes):
        args = SinKDConfig(
            str(tmp_path / "run"),
            report_to=tracker,
            max_steps=2,
            logging_steps=1,
            eval_strategy="steps",
            eval_steps=2,
            save_strategy="no",
            per_device_train_batch_size=4,
            use_cpu=True,
            disable_tqdm=True,
            **changes,
        )
        trainer = SinKDTrainer(
            tiny_causal_lm(),
            tiny_causal_lm(seed=1),
            args,
            train_dataset=opinions(8),
            eval_dataset=opinions(4),
            processing_class=tiny_tokenizer,
        )
        trainer.add_callback(MetricsFileCallback(tmp_path / "metrics.jsonl"))
        trainer.train()
        return [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]

    return run


def named(records):
    """(name as trackers write it, step) to value."""
    found = {}
    for record in records:
        if "train_runtime" in record:  # the totals of the run
            continue
        for name, value in record.items():
            if name not in PROGRESS and isinstance(value, int | float):
                tracked = f"eval/{name.removeprefix('eval_')}" if name.startswith("eval_") else f"train/{name}"
                found[tracked, record["step"]] = value
    return found


TERMS = {
    ("train/kl", 1),
    ("train/ce", 2),
    ("train/sinkhorn", 1),
    ("train/sinkhorn/diagonal_mass", 2),
    ("eval/agreement", 2),
}


def test_tensorboard_reads_back_every_value_under_its_name(train, tmp_path, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "events"))
    written = named(train("tensorboard"))
    assert written.keys() >= TERMS
    events = EventAccumulator(str(tmp_path / "events")).Reload()
    read = {(tag, e.step): e.value for tag in events.Tags()["scalars"] for e in events.Scalars(tag)}
    assert written.keys() <= read.keys()
    for place, value in written.items():
        assert read[place] == pytest.approx(value, rel=1e-5, abs=1e-12), place


def test_trackio_keeps_every_value_under_its_name_without_a_network(train, tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    import trackio
    from trackio.sqlite_storage import SQLiteStorage

    written = named(train("trackio", project="mine", run_name="one"))
    assert written.keys() >= TERMS
    assert tmp_path / "trackio" == trackio.utils.TRACKIO_DIR
    (run,) = trackio.Api().runs("mine")
    records = SQLiteStorage.get_logs("mine", run.name, run_id=run.id)
    read = {(name, record.get("train/global_step")): value for record in records for name, value in record.items()}
    assert {place: read[place] for place in written} == pytest.approx(written)


@pytest.mark.parametrize("name", ["foo", "tensorbord"])
def test_a_name_that_nobody_knows_is_refused_with_those_that_are_known(name, tmp_path):
    with pytest.raises(
        InputError, match=rf"'{name}', which is no tracker that Transformers knows; choose from "
    ) as found:
        SinKDConfig(str(tmp_path), report_to=name)
    assert "install" not in str(found.value)
    assert all(known in str(found.value) for known in ("tensorboard", "trackio", "wandb", "none"))


def test_a_tracker_that_is_not_here_is_named_with_its_package(tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.integrations.get_available_reporting_integrations", lambda: ["tensorboard"])
    with pytest.raises(
        InputError, match=r"'comet_ml', which is not installed here; pip install comet_ml, or .*tensorboard"
    ):
        SinKDConfig(str(tmp_path), report_to="comet_ml")
