"""Two ranks train what one trains also where the rows do not fill the last batch: no row counts twice.

Two processes over gloo run all cases in one launch (short_batch_worker.py); the tests compare what they wrote.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distributed import short_batch_worker as worker
from tests.support.caches import cache_model
from tests.support.launch import run_ranks

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def folder(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_tokenizer: Any,
    tiny_causal_lm: Callable[..., Any],
    tiny_model: Callable[..., Any],
    marked_tokenizer: Callable[[str], Any],
    zygote: Callable[..., dict[str, Any]],
) -> Path:
    """A student and a teacher of each family, and what two ranks made of them."""
    folder = tmp_path_factory.mktemp("short")
    for model, seed in (("student", 1), ("teacher", 2)):
        built = {
            "causal": tiny_causal_lm(seed=seed),
            "t5": tiny_model("t5", seed=seed),
            "classifier": tiny_model("bert", seed=seed, num_labels=2, id2label={0: "bad", 1: "good"}),
            "regression": tiny_model("bert", seed=seed, num_labels=1, id2label={0: "value"}),
        }
        for family, made in built.items():
            if model == "teacher" and family != "regression":  # a random one is as good as uniform: nothing to teach
                head = made.lm_head if hasattr(made, "lm_head") else made.classifier
                head.weight.data *= 20
            made.save_pretrained(folder / family / model)
            marked = {"t5": "t5", "classifier": "bert", "regression": "bert"}.get(family)
            tokenizer = marked_tokenizer(marked) if marked else tiny_tokenizer
            tokenizer.save_pretrained(folder / family / "tokenizer")
            tokenizer.save_pretrained(folder / family / model)
    cache_model(folder / "cache", folder / "causal" / "teacher", worker.rows_of("causal", 49))
    worker.cache_sets(folder / "sets")
    run_ranks(zygote, "short_batch_worker", str(folder), log=folder / "log.txt")
    return folder


@pytest.fixture(scope="module")
def ranks(folder: Path) -> list[dict[str, dict[str, Any]]]:
    return [torch.load(folder / f"short-{rank}.pt") for rank in (0, 1)]


def records_of(result: dict[str, Any], names: list[str]) -> torch.Tensor:
    return torch.tensor([[record[name] for name in names] for record in result["records"]])


def window_is_whole(name: str) -> bool:
    """Whether two ranks have the transport problems of one, which is what most diagnostics are of."""
    return not name.endswith("each-device")


def test_a_number_that_breaks_on_one_rank_ends_both_in_front_of_the_same_update(folder: Path) -> None:
    for rank in (0, 1):
        said = (folder / f"broken-{rank}.txt").read_text(encoding="utf-8")
        assert said.startswith("NonFiniteError: Training stopped before update 2: ")
        assert ("the term 'ce' of the loss is nan" if rank else "the norm of the gradient is nan") in said
        assert "opinion-" in said
    assert not list((folder / "broken").glob("checkpoint-2"))
    assert (folder / "broken" / "checkpoint-1").is_dir()


@pytest.mark.parametrize("name", worker.RUNS)
def test_two_ranks_train_and_score_what_one_does(name: str, ranks: Any, folder: Path) -> None:
    first, second = (rank[name] for rank in ranks)
    alone = worker.run(folder, name, 1)
    assert torch.equal(first["weights"], second["weights"])
    assert (first["weights"] - alone["weights"]).abs().max() < 1e-5
    terms = ("loss", "grad_norm", "sinkhorn", "transported", "ce", "kl", "mse", "hidden", "queue")
    logged = [key for key in terms if key in alone["records"][0]]
    assert len(logged) > 3
    torch.testing.assert_close(records_of(first, logged), records_of(alone, logged), rtol=1e-4, atol=2e-4)
    diagnosed = sorted(key for key in alone["records"][0] if key.startswith("sinkhorn/") or key.endswith("_entropy"))
    if window_is_whole(name):
        torch.testing.assert_close(records_of(first, diagnosed), records_of(alone, diagnosed), rtol=1e-3, atol=1e-3)
    for when in ("before", "after"):
        assert first[when] == pytest.approx(alone[when], rel=1e-4)
    assert first["predicted"] == alone["predicted"]
    count = worker.RUNS[name][1]
    updates = count // 16 if name.endswith("dropped") else -(-count // 16)
    assert len(alone["records"]) == 2 * updates
