"""The quickstart data: reproducible, balanced, disjoint, and not solvable by counting kind words."""

import re
from collections import Counter
from pathlib import Path

import pytest

from sinkd_llm.tasks import load_task
from sinkd_llm.tasks.quickstart import generate, more_vocabulary, vocabulary
from sinkd_llm.tasks.schema import read_task_file

FOLDER = Path(generate.__file__).parent
SIZES = {"train": 600, "validation": 1000, "unlabelled": 3000}


@pytest.fixture(scope="module")
def splits():
    return generate.generate()


def test_regenerates_byte_for_byte(tmp_path: Path) -> None:
    generate.write(tmp_path)
    names = {"train.jsonl", "validation.jsonl", "unlabelled.txt"}
    assert {file.name for file in tmp_path.iterdir()} == names
    for name in names:
        assert (tmp_path / name).read_bytes() == (FOLDER / name).read_bytes()
    assert sum((FOLDER / name).stat().st_size for name in names) < 300_000


def test_sizes_balance_and_disjoint_splits(splits) -> None:
    assert {split: len(rows) for split, rows in splits.items()} == SIZES
    texts = [row["text"].lower() for rows in splits.values() for row in rows]
    assert len(set(texts)) == len(texts)
    for split, rows in splits.items():
        positive = sum(row["label"] for row in rows)
        assert abs(positive / len(rows) - 0.5) <= 0.03
        counts = Counter((row["frame"], row["label"]) for row in rows)
        for frame in generate.FRAMES:
            assert abs(counts[frame, 0] - counts[frame, 1]) <= 0.15 * counts[frame, 0]
            # No split is easier than another: the frames have their turns in all of them.
            in_train = sum(row["frame"] == frame for row in splits["train"]) / SIZES["train"]
            assert abs(sum(counts[frame, label] for label in (0, 1)) / len(rows) - in_train) < 0.02, (split, frame)


def test_sentences_are_well_formed(splits) -> None:
    for row in [row for rows in splits.values() for row in rows]:
        assert re.fullmatch(r"[A-Z][\w ,;:'é-]+\.", row["text"]), row["text"]


def test_no_adjective_both_praises_and_blames() -> None:
    domains = (*vocabulary.DOMAINS, *more_vocabulary.MORE_DOMAINS)
    aspects = [aspect for domain in domains for aspect in domain.aspects]
    good = {word for aspect in aspects for word in aspect.good}
    assert not good & {word for aspect in aspects for word in aspect.bad}


def test_only_texts_without_labels_speak_of_more_things(splits) -> None:
    things = {split: " ".join(row["text"] for row in rows).lower() for split, rows in splits.items()}
    for domain in more_vocabulary.MORE_DOMAINS:
        assert f" {domain.thing} " in things["unlabelled"]
        assert f" {domain.thing} " not in things["train"] + things["validation"]


def test_kind_words_mislead_in_a_sixth_of_the_rows(splits) -> None:
    aspects = [aspect for domain in vocabulary.DOMAINS for aspect in domain.aspects]
    good = {word for aspect in aspects for word in aspect.good}
    bad = {word for aspect in aspects for word in aspect.bad}
    right = wrong = 0
    for row in splits["validation"]:
        words = re.findall(r"\w+", row["text"].lower())
        score = sum(word in good for word in words) - sum(word in bad for word in words)
        right += score != 0 and (score > 0) == (row["label"] == 1)
        wrong += score != 0 and (score > 0) != (row["label"] == 1)
    assert right + wrong > 100
    assert 1 / 7 < wrong / (right + wrong) < 1 / 4


def test_single_words_do_not_tell_every_label(splits) -> None:
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    classifier = make_pipeline(CountVectorizer(), LogisticRegression(max_iter=2000))
    train, validation = splits["train"], splits["validation"]
    classifier.fit([row["text"] for row in train], [row["label"] for row in train])
    score = classifier.score([row["text"] for row in validation], [row["label"] for row in validation])
    assert score < 0.8


def test_validation_words_occur_in_train(splits) -> None:
    """What validation asks can be learnt: nearly all its words are seen in training."""
    seen = set(re.findall(r"\w+", " ".join(row["text"] for row in splits["train"]).lower()))
    asked = re.findall(r"\w+", " ".join(row["text"] for row in splits["validation"]).lower())
    assert sum(word in seen for word in asked) / len(asked) > 0.95


def test_loads_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    data = load_task("quickstart").load("validation", data_dir=tmp_path)
    assert len(data) == SIZES["validation"]
    assert data[0]["choices"] == [" negative", " positive"]
    assert read_task_file(FOLDER / "quickstart.yaml")[0]["dataset_path"] == "json"
