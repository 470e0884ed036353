"""Groups of rows stay in one batch, in an order of seed and epoch alone, on one process and on several; each is a
transport problem of its own."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import skip_first_batches
from accelerate.data_loader import prepare_data_loader
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import DataLoader

from sinkd_llm import SinKDConfig, SinKDTrainer
from sinkd_llm.errors import InputError
from sinkd_llm.models.origin import set_origin
from sinkd_llm.teachers.contract import GROUP_NUMBER
from sinkd_llm.training.blank_rows import BlankingCollator, RowsAndBlanks, spread_without_repeats
from sinkd_llm.training.grouped_rows import WholeGroups, packed_sizes, with_group_numbers
from tests.support import naive
from tests.support.rows import opinions, several_tokens
from tests.support.trainers import gradients, microbatches, short_config

TRANSPORTED = {"alpha": 0.0, "divergence": "none", "sinkhorn_weight": 0.0, "transported_weight": 2.0}
GROUPED = {**TRANSPORTED, "transport_scope": "group", "group_column": "batch"}
# The groups of sixteen rows: no two of one group are neighbours, and two rows have none.
NAMES = ["a", "b", None, "a", "c", "b", "a", "c", "b", "", "d", "d", "e", "e", "d", "a"]
NUMBERS = np.random.default_rng(0).permutation(np.repeat(np.arange(120), np.resize([1, 2, 3, 5, 8], 120)))


@settings(max_examples=100, deadline=None)
@given(
    group_of=st.lists(st.integers(-3, 12), min_size=1, max_size=120),
    room=st.integers(0, 20),
    seed=st.integers(0, 5),
    epoch=st.integers(0, 3),
)
def test_each_row_comes_once_and_each_group_whole(group_of: list[int], room: int, seed: int, epoch: int) -> None:
    largest = max(group_of.count(number) for number in group_of)
    sampler = WholeGroups(group_of, largest + room, seed)
    sampler.set_epoch(epoch)
    order = list(sampler)
    assert len(order) == len(sampler)
    assert sorted(i for i in order if i < len(group_of)) == list(range(len(group_of)))
    where: dict[int, set[int]] = {}
    for place, i in enumerate(order):
        if i < len(group_of):
            where.setdefault(group_of[i], set()).add(place // sampler.batch)
    assert all(len(batches) == 1 for batches in where.values())


@settings(max_examples=100, deadline=None)
@given(counts=st.dictionaries(st.integers(1, 10), st.integers(1, 30), min_size=1), batch=st.integers(10, 40))
def test_batches_are_full_as_far_as_groups_allow(counts: dict[int, int], batch: int) -> None:
    packed = packed_sizes(counts, batch)
    assert {size: sum(sizes.count(size) for sizes in packed) for size in counts} == counts
    rooms = [batch - sum(sizes) for sizes in packed]
    assert min(rooms) >= 0
    least = -(-sum(size * count for size, count in counts.items()) // batch)
    assert len(packed) <= 11 / 9 * least + 4 or max(counts) > batch / 3
    # Of two batches that are not the last one, none holds only what another has room for.
    assert sum(room >= max(counts) for room in rooms) <= 1


def test_each_epoch_and_each_seed_mixes_anew_and_nothing_else_does() -> None:
    sampler = WholeGroups(NUMBERS, 16, seed=3)
    first = list(sampler)
    torch.rand(5)
    assert list(sampler) == first
    sampler.set_epoch(1)
    assert list(sampler) != first
    assert len(list(sampler)) == len(first)
    sampler.set_epoch(0)
    assert list(sampler) == first
    assert list(WholeGroups(NUMBERS, 16, seed=4)) != first


def collated(features: Any) -> dict[str, Any]:
    return {"labels": torch.tensor([row["n"] for row in features])}


def loader(process: int, processes: int, drop_last: bool = False) -> Any:
    rows = [{"n": n} for n in range(len(NUMBERS))]
    data: Any = RowsAndBlanks(rows)
    prepared = prepare_data_loader(
        DataLoader(
            data,
            batch_size=16,
            sampler=WholeGroups(NUMBERS, 16, 0),
            collate_fn=BlankingCollator(collated),
            drop_last=drop_last,
        ),
        num_processes=processes,
        process_index=process,
        put_on_device=False,
    )
    return spread_without_repeats(prepared, rows) if processes > 1 else prepared


@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize("drop_last", [False, True])
def test_groups_are_whole_on_every_process_and_no_row_comes_twice(processes: int, drop_last: bool) -> None:
    of_ranks = [list(loader(process, processes, drop_last)) for process in range(processes)]
    assert len({len(batches) for batches in of_ranks}) == 1
    seen: list[int] = []
    for part in (part for step in zip(*of_ranks, strict=True) for part in step):
        rows = [n for n in part["labels"].tolist() if n >= 0]
        seen += rows
        numbers = NUMBERS[rows]
        assert all((numbers == number).sum() == (number == NUMBERS).sum() for number in numbers)
    assert len(seen) == len({*seen})
    if not drop_last:
        assert sorted(seen) == list(range(len(NUMBERS)))


@pytest.mark.parametrize("processes", [1, 2])
def test_a_loader_that_goes_on_in_the_second_epoch_has_its_order(processes: int) -> None:
    whole = loader(0, processes)
    whole.set_epoch(1)
    expected = [batch["labels"].tolist() for batch in whole][5:]
    fresh = loader(0, processes)
    fresh.set_epoch(1)  # as `_run_epoch` does before Transformers leaves batches out and tells the rest
    left = skip_first_batches(fresh, 5)
    left.set_epoch(1)
    assert [batch["labels"].tolist() for batch in left] == expected


def numbers_of(values: list[Any], batch: int = 8) -> list[int]:
    rows = Dataset.from_dict({"g": values})
    return list(with_group_numbers(Dataset.from_dict({"n": range(len(values))}), rows, "g", batch)[GROUP_NUMBER])


@pytest.mark.parametrize(
    ("values", "numbers"),
    [
        (["b", "a", "b", None, "", None, " "], [0, 1, 0, 2, 3, 4, 5]),
        ([7, 0, 7, None, -1], [0, 1, 0, 2, 3]),
        ([7.0, float("nan"), 7.0, None], [0, 1, 0, 2]),
        ([True, False, True], [0, 1, 0]),
    ],
    ids=str,
)
def test_equal_values_are_a_group_and_rows_without_one_are_alone(values: list[Any], numbers: list[int]) -> None:
    assert numbers_of(values) == numbers


def test_what_is_no_group_is_refused_with_its_name(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(InputError, match="The group 'b' of group_column 'g' has 3 rows, and a batch has room for 2"):
        numbers_of(["a", "b", "b", "a", "b"], batch=2)
    with pytest.raises(InputError, match=r"row 1 has the value 0\.5 in it; a group has a name"):
        numbers_of([1.0, 0.5])
    with pytest.raises(InputError, match=r"row 0 has the value \['a'\]"):
        numbers_of([["a"], ["b"]])
    with pytest.raises(InputError, match=r"group_column is 'of', and the training rows have the columns g; give one"):
        with_group_numbers(Dataset.from_dict({"n": [1]}), Dataset.from_dict({"g": [1]}), "of", 4)
    with caplog.at_level(logging.WARNING):
        numbers_of([1, 2, 3])
    assert "every row is a transport problem by itself" in caplog.text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"group_column": None}, "transport_scope is group, and nothing says of which group a row is"),
        ({"transport_scope": "batch"}, "group_column would have no effect with transport_scope batch"),
        ({"train_sampling_strategy": "sequential"}, "train_sampling_strategy is sequential"),
        ({"transport_accumulation": True}, "transport_accumulation would have no effect"),
        ({"transported_coupling": "nearest"}, "transported_coupling is 'nearest'; it takes one of transport"),
        ({"transported_anchor": 1.5}, "transported_anchor is 1.5; give a number from 0 to 1"),
        (
            {"transport_scope": "batch", "group_column": None, "transport_accumulation": True}
            | {"transported_coupling": "proportion"},
            "transported_coupling is proportion, which compares the means of whole problems, and transport_accumul",
        ),
        ({"alpha": 1.0}, "Nothing beside transported says which class is which"),
    ],
    ids=str,
)
def test_settings_that_do_not_go_together(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        short_config(tmp_path, **{**GROUPED, **changes})


def test_settings_reach_the_objective(tmp_path: Path) -> None:
    given = {
        **{"transported_weight": 3.0, "transported_temperature": 2.0, "transported_epsilon": 0.25},
        **{"transported_iterations": 7, "transported_anchor": 0.3, "transported_coupling": "row_softmax"},
    }
    objective = SinKDConfig(str(tmp_path), report_to="none", **given).objective()
    assert {name: objective.by_name()[name] for name in given} == given
    assert objective.transported_settings is not None
    assert SinKDConfig(str(tmp_path), report_to="none").objective().transported_settings is None


def grouped(rows: Dataset) -> Dataset:
    return rows.add_column("batch", [NAMES[i % len(NAMES)] for i in range(len(rows))])


@pytest.fixture
def models(tiny_causal_lm: Callable[..., Any]) -> Callable[[], dict[str, Any]]:
    """Student and teacher in fp64; what random ones predict is as good as uniform, so their heads are scaled."""

    def make() -> dict[str, Any]:
        made = {"model": tiny_causal_lm(seed=1).double(), "teacher_model": tiny_causal_lm(seed=2).double()}
        for model in made.values():
            model.lm_head.weight.data *= 20
        return made

    return make


def expected_loss(trainer: SinKDTrainer, batch: dict[str, Any]) -> Tensor:
    """The loss of a micro-batch from the scores of both models, by the formulas."""
    forward = trainer.forward
    rows, theirs = forward.student_rows(trainer.model, batch), forward.teacher_rows(batch)
    student, teacher = rows.logits_NV.double(), theirs.signal.double().detach()  # type: ignore[union-attr]
    groups = [int(batch[GROUP_NUMBER][example]) for example in rows.example_N]
    of = forward.objective.transported
    moved = naive.transported(student, teacher, of, groups)
    return naive.cross_entropy(student, rows.labels_N).sum() + of.transported_weight * moved


@pytest.mark.parametrize("signal", ["tokens", "choices"])
@pytest.mark.parametrize("anchor", [1.0, 0.3])
def test_loss_and_gradient_over_groups_are_the_formulas(
    signal: str, anchor: float, train: Callable[..., SinKDTrainer], models: Callable[[], dict[str, Any]]
) -> None:
    trainer = train(
        **models(),
        train_dataset=grouped(opinions() if signal == "choices" else several_tokens(16)),
        eval_dataset=None,
        signal=signal,
        fused="auto" if signal == "choices" else "never",
        transported_anchor=anchor,
        **GROUPED,
    )
    batches = microbatches(trainer, [16])
    loss, gradient = gradients(trainer, batches)
    model = trainer.model
    model.zero_grad()
    items = trainer._get_num_items_in_batch(batches, torch.device("cpu"))
    expected = expected_loss(trainer, batches[0]) / items
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=1e-9)
    twin = torch.cat([p.grad.flatten() for p in model.parameters()])
    # Llama normalises in fp32, whatever its weights are.
    torch.testing.assert_close(gradient, twin, rtol=1e-6, atol=1e-7)


def test_a_group_is_not_the_batch(train: Callable[..., SinKDTrainer], models: Callable[[], dict[str, Any]]) -> None:
    rows = grouped(several_tokens(16))
    trainer = train(**models(), train_dataset=rows, eval_dataset=None, **GROUPED)
    by_group, _ = gradients(trainer, microbatches(trainer, [16]))
    whole = train(**models(), train_dataset=rows, eval_dataset=None, **TRANSPORTED)
    assert GROUP_NUMBER not in whole.train_dataset.column_names
    assert gradients(whole, microbatches(whole, [16]))[0] != pytest.approx(by_group, rel=0.02)


def test_terms_of_pairs_are_warned_of(train: Callable[..., SinKDTrainer], caplog: pytest.LogCaptureFixture) -> None:
    rows = grouped(opinions())
    with caplog.at_level(logging.WARNING):
        train(train_dataset=rows, eval_dataset=None, **GROUPED)
    assert "wrong pairs" not in caplog.text
    with caplog.at_level(logging.WARNING):
        train(train_dataset=rows, eval_dataset=None, **{**GROUPED, "alpha": 0.5, "divergence": "tvd"})
    assert (
        "tvd takes the teacher's row of each row for its own, also within a group of group_column 'batch'"
        in caplog.text
    )


def test_a_new_head_is_warned_of(
    train: Callable[..., SinKDTrainer], tiny_causal_lm: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    rows, student = grouped(opinions()), tiny_causal_lm(seed=1)
    set_origin(student, None, ("classifier",))
    with caplog.at_level(logging.WARNING):
        anchored = {**GROUPED, "transported_anchor": 0.3}
        train(model=student, train_dataset=rows, eval_dataset=None, **anchored).get_train_dataloader()
    assert "new head" not in caplog.text
    with caplog.at_level(logging.WARNING):
        train(model=student, train_dataset=rows, eval_dataset=None, **GROUPED).get_train_dataloader()
    assert "The student has a new head, which knows no class" in caplog.text


def test_a_run_keeps_groups_together_and_goes_on_in_the_middle_of_an_epoch(
    train: Callable[..., SinKDTrainer], tiny_causal_lm: Callable[..., Any], tmp_path: Path
) -> None:
    def run(output: str, resume: str | None = None, **more: Any) -> tuple[list[float], list[list[int]]]:
        trainer = train(
            model=tiny_causal_lm(seed=1),
            train_dataset=grouped(opinions()),
            eval_dataset=None,
            output_dir=str(tmp_path / output),
            max_steps=-1,
            num_train_epochs=2,
            per_device_train_batch_size=5,
            save_strategy="steps",
            save_steps=3,
            packing=True,
            **{**GROUPED, **more},
        )
        taken: list[list[int]] = []
        collate = trainer.data_collator

        def watched(features: Any) -> Any:
            taken.append([row[GROUP_NUMBER] for row in features])
            return collate(features)

        trainer.data_collator = watched
        trainer.train(resume_from_checkpoint=resume)
        return [record["loss"] for record in trainer.state.log_history if "loss" in record], taken

    losses, taken = run("whole")
    assert len(losses) == 8  # sixteen rows in the batches of five that groups of 4, 3, 3, 2, 2, 1 and 1 fill
    known = [numbers for numbers in NAMES if numbers]
    for numbers in taken:
        assert len(numbers) <= 5
    epochs = taken[-8:-4], taken[-4:]
    for epoch in epochs:
        assert sum(len(numbers) for numbers in epoch) == 16
        counts = sorted(numbers.count(n) for numbers in epoch for n in {*numbers})
        assert counts == sorted([*(known.count(name) for name in {*known}), 1, 1])
    assert epochs[0] != epochs[1]
    resumed, _ = run("resumed", str(tmp_path / "whole" / "checkpoint-6"))
    assert resumed == losses
    with pytest.raises(InputError, match="group_column: batch in the checkpoint, None now"):
        run("other", str(tmp_path / "whole" / "checkpoint-6"), group_column=None, transport_scope="batch")


def test_fine_tuning_with_a_recipe_for_groups_has_none(train: Callable[..., SinKDTrainer]) -> None:
    trainer = train(teacher=False, train_dataset=opinions(), **GROUPED)
    assert GROUP_NUMBER not in trainer.train_dataset.column_names
    trainer.train()


def test_rows_without_any_label_are_refused_where_nothing_names_the_classes(
    train: Callable[..., SinKDTrainer],
) -> None:
    rows = grouped(opinions().map(lambda row: {"label": -1, "completion": ""}))
    with pytest.raises(InputError, match="Nothing beside transported says which class is which"):
        train(train_dataset=rows, eval_dataset=None, signal="choices", **GROUPED)
    train(train_dataset=rows, eval_dataset=None, signal="choices", transported_anchor=0.3, **GROUPED)


def test_a_number_has_no_cross_entropy(
    tmp_path: Path, tiny_model: Callable[..., Any], marked_tokenizer: Callable[[str], Any]
) -> None:
    from tests.support.rows import regression_rows

    rows = [{**row, "completion": row["choices"][row["label"]]} for row in regression_rows(4)]
    with pytest.raises(InputError, match="set transported_weight to 0 for a regression"):
        SinKDTrainer(
            model=tiny_model("bert", num_labels=1, seed=1),
            teacher_model=tiny_model("bert", num_labels=1, seed=2),
            processing_class=marked_tokenizer("bert"),
            train_dataset=Dataset.from_list(rows),
            args=short_config(tmp_path, **TRANSPORTED),
        )
