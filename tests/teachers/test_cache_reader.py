"""Reading a cache: the right rows, only those, and a refusal of whatever is not the cache of this run."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch import Tensor

from sinkd_llm.errors import InputError
from sinkd_llm.objectives import DistillationObjective, TopKSignal, TransportedSettings
from sinkd_llm.teachers import CachedTeacher
from sinkd_llm.teachers.cache import reader as cached
from sinkd_llm.teachers.cache.identity import row_prints, weights_hash
from sinkd_llm.teachers.cache.layout import CacheLayout
from sinkd_llm.teachers.cache.writer import CacheWriter, RowOrder
from tests.support.caches import WIDTH, add_rows, features, new_manifest, teacher_rows, write

FULL = CacheLayout("full", WIDTH, WIDTH, (), "float32")


@pytest.fixture
def cache(tmp_path: Path) -> CachedTeacher:
    write(tmp_path / "cache", features())
    return CachedTeacher(tmp_path / "cache")


def picked(numbers: list[int], rows: Dataset | None = None) -> list[dict[str, Any]]:
    rows = features() if rows is None else rows
    return [rows[i] for i in numbers]


def batch(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What a cache reads of a batch: the names of its rows, and where its labels are."""
    return {"example_id": [row["example_id"] for row in rows], "labels": torch.zeros(len(rows), 1)}


@pytest.mark.parametrize("numbers", [[0], [22, 3, 7, 3], list(range(23))], ids=str)
def test_rows_come_back_by_name_and_place_in_any_order(numbers: list[int], tmp_path: Path) -> None:
    write(tmp_path, features(), FULL)
    rows = picked(numbers)
    theirs = CachedTeacher(tmp_path).signal(batch(rows))
    signal, position_N = theirs.signal, theirs.position_N
    expected = torch.cat([teacher_rows(row["example_id"], len(row["answer_ids"])) for row in rows])
    assert isinstance(signal, Tensor)
    assert torch.equal(signal, expected)
    assert position_N.tolist() == [p for row in rows for p in range(len(row["answer_ids"]))]


def test_a_top_k_signal_comes_back_from_several_shards(cache: CachedTeacher) -> None:
    rows = picked([0, 21, 9, 14])
    signal = cache.signal(batch(rows)).signal
    dense = torch.cat([teacher_rows(row["example_id"], len(row["answer_ids"])) for row in rows])
    assert isinstance(signal, TopKSignal)
    assert torch.equal(signal.ids_NK, dense.topk(8).indices)
    expected = TopKSignal.from_logits(dense, signal.ids_NK, (1.0, 2.0))
    for temperature in (1.0, 2.0):
        for ours, theirs in zip(signal.probabilities(temperature), expected.probabilities(temperature), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-6)


def test_no_example_is_no_row(cache: CachedTeacher) -> None:
    empty = cache.signal(batch([]))
    assert [len(empty.signal), len(empty.position_N)] == [0, 0]


def test_missing_examples_are_named(cache: CachedTeacher) -> None:
    rows = [*picked([1, 2]), {"example_id": "row-900", "prompt_ids": [1], "answer_ids": [2]}]
    with pytest.raises(InputError, match=r"Rows are not in the teacher cache .*: row-900\. Train on"):
        cache.signal(batch(rows))
    with pytest.raises(
        InputError, match=r"not in the teacher cache .*: row-23, row-24, row-25, row-26, row-27 and 2 more"
    ):
        cache.check_rows(features(30))


def test_some_of_the_rows_in_another_order_are_fine_and_changed_ones_are_not(cache: CachedTeacher) -> None:
    cache.check_rows(features().shuffle(seed=3).select(range(9)))
    for column, what in (("prompt_ids", "prompt"), ("answer_ids", "answer")):
        rows = features().to_list()
        rows[5][column] = [*rows[5][column][:-1], 49 - rows[5][column][-1]]
        with pytest.raises(InputError, match=f"have another {what} than when task 'made-up' was cached .*: row-5"):
            cache.check_rows(Dataset.from_list(rows))


def test_prints_tell_types_of_tokens_apart_and_do_not_depend_on_how_arrow_holds_the_rows() -> None:
    rows = features(6)
    plain = np.concatenate([part.prints for part in row_prints(rows)])
    again = np.concatenate([part.prints for part in row_prints(rows.select([5, 4, 3, 2, 1, 0]))])
    assert np.array_equal(plain, again[::-1])
    typed = rows.map(lambda row: {"token_type_ids": [0] * len(row["prompt_ids"])})
    other = rows.map(lambda row: {"token_type_ids": [1] * len(row["prompt_ids"])})
    three = [np.concatenate([part.prints for part in row_prints(r)]) for r in (rows, typed, other)]
    assert not (three[0] == three[1]).any()
    assert not (three[1] == three[2]).any()


def test_an_unfinished_cache_says_how_far_it_is(tmp_path: Path) -> None:
    rows = features()
    ordered = RowOrder(rows)
    with CacheWriter(tmp_path, new_manifest(ordered), ordered, 100) as writer:
        add_rows(writer, rows)  # and no finish
    with pytest.raises(InputError, match=r"is not complete: 2\d of 23 examples are cached\. Start the same"):
        CachedTeacher(tmp_path)


def test_no_cache_says_what_writes_one(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is no teacher cache: it has no manifest\.json\. 'sinkd cache"):
        CachedTeacher(tmp_path)


@pytest.mark.parametrize("name", ["shard-00001.safetensors", "index.safetensors"])
@pytest.mark.parametrize("damage", ["cut", "changed", "missing"])
def test_changed_bytes_are_refused(name: str, damage: str, cache: CachedTeacher) -> None:
    file = cache.folder / name
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(content if damage == "changed" else content[:-1])
    message = {"cut": "bytes instead of", "changed": "have changed", "missing": "is missing"}[damage]
    with pytest.raises(InputError, match=f"is damaged: .*{message}.*Start the same 'sinkd cache' again"):
        CachedTeacher(cache.folder)


def test_a_large_cache_checks_a_shard_when_it_first_needs_it(
    cache: CachedTeacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cached, "CHECKED_AT_ONCE_BYTES", 10)
    broken = cache.folder / cache.manifest.shards[-1]["file"]
    content = bytearray(broken.read_bytes())
    content[-1] ^= 1
    broken.write_bytes(content)
    large = CachedTeacher(cache.folder)
    order = RowOrder(features()).order.tolist()
    rows = picked(order[:3])
    assert len(large.signal(batch(rows)).signal) > 0
    rows = picked(order[-1:])
    with pytest.raises(InputError, match=r"bytes of shard-0000\d\.safetensors have changed"):
        large.signal(batch(rows))


class Watched:
    """An array that remembers which rows were asked for."""

    def __init__(self, array: Any, seen: set[int]) -> None:
        self.array, self.seen = array, seen
        self.dtype, self.shape = array.dtype, array.shape

    def __getitem__(self, rows: Any) -> Any:
        self.seen.update(np.arange(len(self.array))[rows].tolist())
        return self.array[rows]


def test_a_batch_reads_its_own_rows_of_memory_mapped_files_and_no_others(cache: CachedTeacher) -> None:
    for arrays in (*(shard.arrays for shard in cache._shards), cache._index):
        for array in arrays.values():
            while array.base is not None and not isinstance(array, np.memmap):
                array = array.base
            assert isinstance(array, np.memmap)
    seen: list[set[int]] = [set() for _ in cache._shards]
    cache._shards = [
        replace(shard, arrays={name: Watched(array, rows) for name, array in shard.arrays.items()})  # type: ignore[misc]
        for shard, rows in zip(cache._shards, seen, strict=True)
    ]
    order, counts = RowOrder(features()).order.tolist(), RowOrder(features()).counts
    rows = picked([order[1], order[9]])
    cache.signal(batch(rows))
    start = counts[order[8]]  # of the second row in the third shard, behind one other
    expected = {0: set(range(counts[order[0]], counts[order[0]] + counts[order[1]]))}
    expected[2] = set(range(start, start + counts[order[9]]))
    assert dict(enumerate(seen)) == {s: expected.get(s, set()) for s in range(len(seen))}


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="the system does not say what is resident")
def test_memory_does_not_grow_with_what_was_read(tmp_path: Path) -> None:
    width, rows = 20_000, features(200, longest=1)
    write(tmp_path / "wide", rows, replace(FULL, vocabulary_size=width, k=width), shard_bytes=2**22)
    cache, entire = CachedTeacher(tmp_path / "wide"), 200 * width * 4

    def resident() -> int:
        """Bytes of the cache's files that this process holds."""
        total, ours = 0, False
        for line in Path("/proc/self/smaps").read_text().splitlines():
            if "-" in line.split()[0]:
                ours = str(tmp_path / "wide" / "shard-") in line
            elif ours and line.startswith("Rss:"):
                total += 1024 * int(line.split()[1])
        return total

    most = 0
    for start in range(0, 200, 4):
        cache.signal(batch(picked([*range(start, start + 4)], rows)))
        most = max(most, resident())
    assert len(cache._shards) >= 4
    assert most < entire / 50


SETTINGS = {"max_length": 64, "apply_chat_template": False, "add_eos": None}


class Vocabulary:
    """A tokenizer, as far as its vocabulary."""

    def __init__(self, added: str = "<pad>", word: str = "good") -> None:
        self.words = {word: 0, "bad": 1, added: 2}
        self.added_tokens_decoder = {2: added}

    def get_vocab(self) -> dict[str, int]:
        return self.words


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_length": 32}, "max_length is 32 here and 64 there"),
        ({"apply_chat_template": True}, "apply_chat_template is True here and False there"),
        ({"add_eos": True}, "add_eos is True here and None there"),
        ({"tokenizer": Vocabulary(word="great")}, "the tokenizer is another"),
        ({"student": "roberta"}, "the student is a masked-lm and the cached teacher a causal-lm"),
        ({"student": 49}, "the student's vocabulary has 49 ids and the cached rows 50 .*--vocabulary_size 49"),
    ],
)
def test_a_run_that_reads_its_rows_otherwise_is_refused(
    change: dict[str, Any], message: str, tmp_path: Path, tiny_causal_lm: Any, tiny_model: Any
) -> None:
    from sinkd_llm.teachers.cache.identity import tokenizer_hash

    write(tmp_path, features(), tokenizer=tokenizer_hash(Vocabulary()))
    teacher = CachedTeacher(tmp_path)
    wanted = change.get("student", 50)
    student = tiny_causal_lm(vocab=wanted) if isinstance(wanted, int) else tiny_model(wanted, "MaskedLM")
    settings = {name: change.get(name, value) for name, value in SETTINGS.items()}
    with pytest.raises(InputError, match=f"is not for this run: {message}"):
        teacher.check_fits(student, change.get("tokenizer", Vocabulary("<eos>")), settings)
    teacher.check_fits(tiny_causal_lm(vocab=53), Vocabulary("<eos>"), SETTINGS)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": 3.0}, "temperature is 3, but the cache .* at 1, 2 only; .*--temperatures 3"),
        ({"sinkhorn_temperature": 1.5}, "sinkhorn_temperature is 1.5, but .*--temperatures 1.5"),
        ({"cost_norm": "sql2"}, "cost_norm is 'sql2', which needs the teacher's whole rows; .*--content full"),
        ({"transported": TransportedSettings(1.0, 1.5)}, "transported_temperature is 1.5, but .*--temperatures 1.5"),
        ({"transported": TransportedSettings(1.0, transported_coupling="proportion")}, "'proportion', which needs"),
        ({"vocabulary": "verbalizers"}, r"does not keep the ids \[3, 4\] of every row"),
    ],
)
def test_a_loss_that_the_cache_cannot_give_is_refused(
    settings: dict[str, Any], message: str, cache: CachedTeacher, tmp_path: Path
) -> None:
    objective = DistillationObjective(**settings)
    with pytest.raises(InputError, match=message):
        cache.check_objective(objective, torch.tensor([3, 4]), 2.0)
    write(tmp_path / "full", features(), FULL)
    CachedTeacher(tmp_path / "full").check_objective(objective, torch.tensor([3, 4]), 2.0)
    CachedTeacher(cache.folder).check_objective(DistillationObjective(), None, 2.0)
    # What is not used may have any temperature.
    cache.check_objective(DistillationObjective(alpha=0.0, temperature=7.0), None, 2.0)
    cache.check_objective(DistillationObjective(sinkhorn_weight=0.0, sinkhorn_temperature=7.0), None, 2.0)


def test_the_teacher_that_a_run_names_must_be_the_cached_one(
    cache: CachedTeacher, tmp_path: Path, tiny_causal_lm: Any
) -> None:
    cache.check_teacher(None, "main")
    cache.check_teacher("teacher", "main")  # not on this machine: the name is all there is
    with pytest.raises(InputError, match=r"names the teacher teacher .*cache of teacher"):
        cache.check_teacher("teacher", "v2")
    for seed, folder in enumerate(("first", "second")):
        tiny_causal_lm(seed=seed).save_pretrained(tmp_path / folder)
    hashes = [weights_hash(str(tmp_path / folder)) for folder in ("first", "second")]
    assert hashes[0] != hashes[1]
    ordered = RowOrder(features())
    manifest = new_manifest(ordered)
    manifest.teacher = replace(manifest.teacher, name="elsewhere", weights=hashes[0])
    with CacheWriter(tmp_path / "cache-of-first", manifest, ordered) as writer:
        add_rows(writer, features())
        writer.finish()
    of_first = CachedTeacher(tmp_path / "cache-of-first")
    of_first.check_teacher(str(tmp_path / "first"), "main")  # moved, but the same files
    with pytest.raises(InputError, match=r"second and the cache .*that is the cache of elsewhere"):
        of_first.check_teacher(str(tmp_path / "second"), "main")


def test_a_run_that_asks_for_a_quantised_teacher_gets_no_other(cache: CachedTeacher) -> None:
    with pytest.raises(InputError, match=r"teacher in 4bit \(teacher_load_in_4bit\).* was not quantised; drop"):
        cache.check_teacher("teacher", "main", "4bit")
    cache.manifest.teacher = replace(cache.manifest.teacher, loading={"dtype": "torch.bfloat16", "quantised": "8bit"})
    with pytest.raises(InputError, match=r"teacher in 4bit .* is of one in 8bit; drop"):
        cache.check_teacher("teacher", "main", "4bit")
    cache.check_teacher("teacher", "main", "8bit")
    cache.check_teacher("teacher", "main")  # no teacher is loaded, so none need be said
