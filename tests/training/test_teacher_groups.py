"""A teacher whose rows are known per group: from its cache to the loss, by the formulas; and what it cannot teach."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset

from sinkd_llm import SinKDTrainer
from sinkd_llm.errors import InputError
from sinkd_llm.inputs.over_choices import LABELS
from sinkd_llm.models.kinds import IGNORE_INDEX
from sinkd_llm.runs.asking import prints_of
from sinkd_llm.teachers import CachedTeacher
from sinkd_llm.teachers.cache.answers import write_answers
from sinkd_llm.teachers.contract import GROUP_NUMBER
from sinkd_llm.teachers.questions import AnswerSet, questions_of
from sinkd_llm.training.transport_cost import predict
from tests.support import naive
from tests.support.rows import opinions
from tests.support.trainers import gradients, microbatches

TRANSPORTED = {"alpha": 0.0, "divergence": "none", "sinkhorn_weight": 0.0, "transported_weight": 2.0}
GROUPED = {**TRANSPORTED, "transport_scope": "group"}
CHOICES = [" negative", " positive", " no opinion"]
# Which rows are of which set: in the order of the teacher's rows (a), in any order with as many (b), fewer (c), or
# counted (d). Nothing is said of the others.
MEMBERS = {"a": (0, 3, 6, 15), "b": (1, 5, 8), "c": (4, 7), "d": (10, 11, 14)}
PAIRED = ("a",)


def rows(unlabelled: Sequence[int] = (), count: int = 16) -> Dataset:
    made = []
    for i, row in enumerate(opinions(count)):
        label = -1 if i in unlabelled else i % 3
        made.append({**row, "choices": CHOICES, "label": label, "completion": "" if label < 0 else CHOICES[label]})
    return Dataset.from_list(made)


def said() -> list[AnswerSet]:
    draw = np.random.default_rng(0)
    counts = {"a": 4, "b": 3, "c": 1, "d": 2}
    return [
        AnswerSet(
            tuple(f"opinion-{i}" for i in members),
            draw.normal(size=(counts[name], 3)).astype(np.float32) * 3,
            np.array([5.0, 2.0]) if name == "d" else np.ones(counts[name]),
            name in PAIRED,
        )
        for name, members in MEMBERS.items()
    ]


@pytest.fixture
def cache(tmp_path: Path) -> Callable[..., Path]:
    def write(sets: Sequence[AnswerSet] | None = None, data: Dataset | None = None, name: str = "cache") -> Path:
        data = rows() if data is None else data
        asked = questions_of(data)
        answers = said() if sets is None else sets
        write_answers(tmp_path / name, prints_of(data, asked), asked, answers, task="opinions", teacher="a file")
        return tmp_path / name

    return write


@pytest.fixture
def trainer(
    train: Callable[..., SinKDTrainer], tiny_causal_lm: Callable[..., Any], cache: Callable[..., Path]
) -> Callable[..., SinKDTrainer]:
    def make(data: Dataset | None = None, **changes: Any) -> SinKDTrainer:
        model = tiny_causal_lm(seed=1).double()
        model.lm_head.weight.data *= 20  # what a random one predicts is as good as uniform
        settings = {"per_device_train_batch_size": 16, **GROUPED, **changes}
        data = rows() if data is None else data
        folder = settings.pop("teacher_cache", None) or str(cache(data=data))
        return train(
            teacher=False, model=model, train_dataset=data, eval_dataset=None, teacher_cache=folder, **settings
        )

    return make


def expected(trainer: SinKDTrainer, batch: dict[str, Any], sets: Sequence[AnswerSet]) -> tuple[Any, Any, int, int]:
    """Sums of cross-entropy and of the transported term of a batch by the formulas, and the rows of each."""
    students = trainer.forward.student_rows(trainer.model, batch)
    scores = students.logits_NV.double()
    number = {name: i for i, name in enumerate(batch["example_id"])}
    labelled = students.labels_N >= 0
    ce = naive.cross_entropy(scores[labelled], students.labels_N[labelled]).sum()
    places, groups, theirs, times, taught = [], [], [], [], []
    for group, one in enumerate(sets):
        here = [number[name] for name in one.names if name in number]
        if not here:
            continue
        kept = [i for i, name in enumerate(one.names) if name in number] if one.paired else range(len(one.times_M))
        places += here
        groups += [group] * len(here)
        for row in kept:
            taught.append(torch.from_numpy(one.scores_MC[row]).double())
            theirs.append(group)
            times.append(float(one.times_M[row]))
    of, paired = trainer.forward.objective.transported, [group for group, one in enumerate(sets) if one.paired]
    moved = naive.transported(scores[places], torch.stack(taught), of, groups, theirs, times, paired=paired)
    return ce, moved, int(labelled.sum()), len(places)


@pytest.mark.parametrize(
    ("coupling", "anchor"),
    [("transport", 1.0), ("transport", 0.3), ("transport", 0.0), ("row_softmax", 1.0), ("proportion", 1.0)],
)
def test_loss_and_gradient_are_the_formulas(
    coupling: str, anchor: float, trainer: Callable[..., SinKDTrainer]
) -> None:
    made = trainer(rows(unlabelled=range(2, 12)), transported_anchor=anchor, transported_coupling=coupling)
    batches = microbatches(made, [16])
    loss, gradient = gradients(made, batches)
    made.model.zero_grad()
    ce, moved, labelled, taught = expected(made, batches[0], said())
    by_hand = ce / labelled + 2 * moved / taught
    by_hand.backward()
    assert (labelled, taught) == (6, 12)
    assert loss == pytest.approx(by_hand.item(), rel=1e-7)
    twin = torch.cat([p.grad.flatten() for p in made.model.parameters()])
    # Llama normalises in fp32, whatever its weights are, and the mean of cached rows is one of fp32.
    torch.testing.assert_close(gradient, twin, rtol=1e-6, atol=1e-6 if coupling == "proportion" else 1e-7)


def test_micro_batches_of_whole_groups_are_a_batch(trainer: Callable[..., SinKDTrainer]) -> None:
    made = trainer(per_device_train_batch_size=8, gradient_accumulation_steps=2)
    features = list(made.train_dataset)
    order = [*MEMBERS["a"], *MEMBERS["b"], 2, *MEMBERS["c"], *MEMBERS["d"], 9, 12, 13]
    parts = [made.data_collator([features[i] for i in part]) for part in (order[:8], order[8:])]
    whole = made.data_collator([features[i] for i in order])
    loss, gradient = gradients(made, parts)
    one_loss, one_gradient = gradients(made, [whole])
    assert loss == pytest.approx(one_loss, rel=1e-7)
    torch.testing.assert_close(gradient, one_gradient, rtol=1e-6, atol=1e-7)


def test_pairs_are_found_whatever_the_order_of_the_rows(trainer: Callable[..., SinKDTrainer]) -> None:
    made = trainer(transported_anchor=0.3)
    assert made.teacher is not None
    features = list(made.train_dataset)
    own = said()[0]
    batch = made.data_collator([features[i] for i in (15, 2, 0, 6)])
    theirs = made.teacher.signal(batch)
    assert theirs.sets is not None
    assert theirs.sets.paired_M is not None
    assert theirs.row_N is not None
    np.testing.assert_array_equal(np.asarray(theirs.signal), own.scores_MC[[3, 0, 2]])
    assert theirs.sets.paired_M.all()
    assert theirs.row_N.tolist() == [0, 2, 3]
    assert made.teacher.count(batch) == 3


def test_a_batch_without_any_taught_row_learns_from_labels(trainer: Callable[..., SinKDTrainer]) -> None:
    made = trainer(per_device_train_batch_size=4)
    features = list(made.train_dataset)
    batch = made.data_collator([features[i] for i in (2, 9, 12)])
    loss, _ = gradients(made, [batch])
    students = made.forward.student_rows(made.model, batch)
    assert loss == pytest.approx(naive.cross_entropy(students.logits_NV, students.labels_N).mean().item(), rel=1e-6)


def test_a_run_trains_and_evaluates_without_the_teacher(
    train: Callable[..., SinKDTrainer], cache: Callable[..., Path]
) -> None:
    data = rows(unlabelled=range(4, 16))
    made = train(
        teacher=False,
        train_dataset=data,
        eval_dataset=rows(count=4),  # of the names of training rows, of which none is asked for
        teacher_cache=str(cache(data=data)),
        per_device_train_batch_size=4,
        max_steps=6,
        eval_strategy="steps",
        eval_steps=3,
        **GROUPED,
    )
    made.train()
    records = made.state.log_history
    assert sum("transported" in record for record in records) >= 4
    assert sum("eval_acc" in record for record in records) == 2
    assert np.isfinite([record["loss"] for record in records if "loss" in record]).all()
    # Groups of 4, 3, 3 and 2, and four rows by themselves.
    numbers = made.train_dataset[GROUP_NUMBER][:]
    assert sorted(numbers.count(number) for number in {*numbers}) == [1, 1, 1, 1, 2, 3, 3, 4]
    assert predict(made).counts.largest <= 4


def test_a_cache_gives_back_what_was_written(cache: Callable[..., Path]) -> None:
    teacher = CachedTeacher(cache())
    names = [f"opinion-{i}" for i in range(16)]
    found = {one.names: one for one in teacher.sets(names)}
    assert len(found) == 4
    for one in said():
        again = found[one.names]
        np.testing.assert_array_equal(again.scores_MC, one.scores_MC)
        np.testing.assert_array_equal(again.times_M, one.times_M)
        assert again.paired == one.paired
    # Single rows are known where they are pairs.
    assert [*teacher.answers(names)] == [f"opinion-{i}" for i in MEMBERS["a"]]
    np.testing.assert_array_equal(teacher.answers(["opinion-6"])["opinion-6"], said()[0].scores_MC[2])
    with pytest.raises(InputError, match="opinion-77"):
        teacher.sets(["opinion-77"])


def test_other_groups_are_another_cache(cache: Callable[..., Path]) -> None:
    cache()
    sets = said()
    with pytest.raises(InputError, match=r"holds a cache of something else \(rows\.hash"):
        cache([AnswerSet(sets[0].names[::-1], sets[0].scores_MC, sets[0].times_M, True), *sets[1:]])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"transport_scope": "batch"}, "transport_scope is batch, and the teacher's rows in .* are known per group"),
        (
            {"alpha": 0.5, "divergence": "kl"},
            "divergence is kl, which compares each row with a teacher row of its own",
        ),
        ({"sinkhorn_weight": 0.4}, "sinkhorn_weight is 0.4, whose cost needs as many teacher rows as rows"),
        ({"transported_weight": 0.0}, "Nothing learns from the teacher: .* transported_weight is 0"),
        (
            {"transported_coupling": "identity"},
            "transported_coupling is identity, which takes teacher row i for row i",
        ),
        ({"per_device_train_batch_size": 3}, "The group of the row opinion-0, as the teacher knows it, has 4 rows"),
    ],
)
def test_losses_that_need_pairs_are_refused(
    changes: dict[str, Any], message: str, trainer: Callable[..., SinKDTrainer]
) -> None:
    with pytest.raises(InputError, match=message):
        trainer(**changes)


def test_an_anchor_needs_some_pairs(trainer: Callable[..., SinKDTrainer], cache: Callable[..., Path]) -> None:
    folder = str(cache(said()[1:]))
    trainer(teacher_cache=folder)
    with pytest.raises(InputError, match=r"transported_anchor is 0\.3, which holds teacher row i near row i"):
        trainer(teacher_cache=folder, transported_anchor=0.3)


def test_groups_of_the_data_are_the_teachers(trainer: Callable[..., SinKDTrainer], cache: Callable[..., Path]) -> None:
    def named(of: dict[str, tuple[int, ...]]) -> Dataset:
        names = {i: name for name, members in of.items() for i in members}
        return rows().add_column("team", [names.get(i, "") for i in range(16)])

    made = trainer(named(MEMBERS), group_column="team")
    assert len({*made.train_dataset[GROUP_NUMBER][:]}) == 8
    with pytest.raises(InputError, match="The group 'a' of the row opinion-0, as the teacher knows it, has 4 rows"):
        trainer(named(MEMBERS), group_column="team", per_device_train_batch_size=3)
    folder = str(cache())
    for other in ({**MEMBERS, "b": (1, 5, 8, 9)}, {**MEMBERS, "a": (0, 3, 6), "e": (15,)}):
        with pytest.raises(InputError, match="the teacher was asked with other groups"):
            trainer(named(other), group_column="team", teacher_cache=folder)
    with pytest.raises(InputError, match="group_column would have no effect with transport_scope batch"):
        trainer(named(MEMBERS), group_column="team", transport_scope="batch", teacher_file="a.csv")


def test_rows_for_rows_without_groups_are_refused(
    trainer: Callable[..., SinKDTrainer], cache: Callable[..., Path]
) -> None:
    asked = questions_of(rows())
    answers: Any = {question.name: np.zeros(3) for question in asked}
    with pytest.raises(InputError, match="neither does the teacher know its rows per group nor does group_column say"):
        trainer(teacher_cache=str(cache(answers)))


def test_labelled_rows_beside_the_groups_count_for_their_labels_alone(trainer: Callable[..., SinKDTrainer]) -> None:
    made = trainer(rows(unlabelled=range(2, 12)), per_device_train_batch_size=20, unlabelled_ratio=0.8)
    (batch,) = list(made.get_train_dataloader())
    names = batch["example_id"]
    assert (len(names), names.count(None), len({*names})) == (20, 4, 17)
    assert made.teacher.count(batch) == 12
    loss, gradient = gradients(made, [batch])
    made.model.zero_grad()
    ce, moved, labelled, taught = expected(made, batch, said())
    assert (labelled, taught) == (10, 12)
    by_hand = ce / labelled + 2 * moved / taught
    by_hand.backward()
    assert loss == pytest.approx(by_hand.item(), rel=1e-7)
    twin = torch.cat([p.grad.flatten() for p in made.model.parameters()])
    torch.testing.assert_close(gradient, twin, rtol=1e-6, atol=1e-7)


def test_labelled_rows_beside_the_groups_need_labels(trainer: Callable[..., SinKDTrainer]) -> None:
    made = trainer(rows(), per_device_train_batch_size=20, unlabelled_ratio=0.8)
    made.train_dataset = made.train_dataset.remove_columns(LABELS).add_column(LABELS, [IGNORE_INDEX] * 16)
    with pytest.raises(InputError, match="unlabelled_ratio is set, but no training row has a label"):
        made.get_train_dataloader()
