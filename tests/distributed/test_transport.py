"""One transport problem over two ranks is the problem of one rank with all rows, in loss, gradient and training.

Two processes over gloo run all cases in one launch (transport_worker.py); the tests compare what they wrote.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.distributed import transport_worker as worker
from tests.support import naive
from tests.support.launch import run_ranks

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def folder(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_tokenizer: Any,
    tiny_causal_lm: Callable[..., Any],
    zygote: Callable[..., dict[str, Any]],
) -> Path:
    """Models of two families, one of which caps its logits behind the head, and what the two ranks made of them."""
    folder = tmp_path_factory.mktemp("ranks")
    tiny_tokenizer.save_pretrained(folder / "tokenizer")
    for name, family in (("plain", "llama"), ("capped", "gemma2")):
        for model, settings in (("student", {"seed": 1}), ("teacher", {"seed": 2, "layers": 4, "hidden": 48})):
            tiny_causal_lm(family, **settings).save_pretrained(folder / name / model)
    run_ranks(zygote, "transport_worker", str(folder), log=folder / "log.txt")
    return folder


@pytest.fixture(scope="module")
def terms(folder: Path) -> list[dict[tuple, dict[str, Any]]]:
    return [torch.load(folder / f"terms-{rank}.pt") for rank in (0, 1)]


@pytest.fixture(scope="module")
def runs(folder: Path) -> list[dict[tuple[str, str], dict[str, Any]]]:
    return [torch.load(folder / f"runs-{rank}.pt") for rank in (0, 1)]


@pytest.mark.parametrize("layout", worker.LAYOUTS)
@pytest.mark.parametrize("name", worker.OBJECTIVES)
def test_loss_and_gradient_are_those_of_one_rank(name: str, layout: str, terms: Any) -> None:
    student, teacher, labels, example, position = worker.case_rows(name, layout)
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-5)):
        ranks = [rank[name, layout, dtype] for rank in terms]
        alone = student.to(dtype).clone().requires_grad_()
        output = worker.case_objective(name)(
            alone,
            worker.case_signal(name, teacher.to(dtype)),
            labels if labels.dtype == torch.long else labels.to(dtype),
            example_N=example,
            position_N=position,
            verbalizer_ids=worker.IDS,
            with_diagnostics=True,
        )
        output.loss.backward()
        close = {"rtol": tolerance, "atol": tolerance}
        torch.testing.assert_close(sum(rank["loss"] for rank in ranks), output.loss.detach(), **close)
        term = sum(rank["sinkhorn"] for rank in ranks)
        torch.testing.assert_close(term, output.terms["sinkhorn"] * len(alone), **close)
        torch.testing.assert_close(torch.cat([rank["gradient"] for rank in ranks]), alone.grad, **close)
        for rank in ranks:
            assert all(torch.isfinite(value) for value in rank["diagnostics"].values())
            for key in ("sinkhorn/row_error", "sinkhorn/diagonal_mass", "sinkhorn/plan_entropy"):
                torch.testing.assert_close(rank["diagnostics"][key], output.diagnostics[key], **close)


@pytest.mark.parametrize("layout", [name for name in worker.LAYOUTS if name != "empty"])
@pytest.mark.parametrize("scope", ["batch", "position"])
def test_loss_and_gradient_are_those_of_the_formula(scope: str, layout: str, terms: Any) -> None:
    student, teacher, labels, _, position = worker.case_rows("", layout)
    M = len(student)

    def formula(x: Tensor) -> Tensor:
        keys = position.tolist() if scope == "position" else [0] * M
        ce, kl = naive.cross_entropy(x, labels).sum(), naive.divergence("kl", x, teacher, 2.0).sum()
        return (0.1 * ce + 0.9 * 4 * kl + 0.8 * naive.sinkd(x, teacher, keys, temperature=0.7)) / M

    ranks = [rank[f"unrolled-{scope}", layout, torch.float64] for rank in terms]
    gradient = torch.cat([rank["gradient"] for rank in ranks])
    torch.testing.assert_close(sum(rank["loss"] for rank in ranks), formula(student), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(gradient, naive.gradient(formula, student), rtol=1e-9, atol=1e-9)
    for seed in range(5):
        direction = torch.randn(student.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        slope = (formula(student + 1e-6 * direction) - formula(student - 1e-6 * direction)) / 2e-6
        torch.testing.assert_close((gradient * direction).sum(), slope, rtol=1e-6, atol=1e-8)


def records_of(result: dict[str, Any], names: tuple[str, ...]) -> Tensor:
    return torch.tensor([[record[name] for name in names] for record in result["records"]])


@pytest.mark.parametrize(("models", "name"), [*(("plain", name) for name in worker.RUNS), ("capped", "default")])
def test_two_ranks_train_as_one_with_all_examples(models: str, name: str, runs: Any, folder: Path, alone: Any) -> None:
    first, second = (rank[models, name] for rank in runs)
    assert torch.equal(first["weights"], second["weights"])
    reference = alone(models, name)
    moved = (reference["weights"] - reference["start"]).abs().max()
    apart = (first["weights"] - reference["weights"]).abs().max()
    assert moved > 1e-2
    if name == "sinkd-of-each-device":  # two problems of half the rows: the comparison does see the difference
        assert apart > 1e-4
        return
    assert apart < 1e-5
    logged = ("loss", "grad_norm", "sinkhorn", *(() if "sinkd" in name else ("ce", "kl")))
    torch.testing.assert_close(records_of(first, logged), records_of(reference, logged), rtol=1e-4, atol=2e-4)


@pytest.fixture(scope="module")
def alone(folder: Path) -> Callable[[str, str], dict[str, Any]]:
    """The same run by one process, with all examples of an update in one batch."""
    known: dict[tuple[str, str], dict[str, Any]] = {}

    def train(models: str, name: str) -> dict[str, Any]:
        from transformers import AutoModelForCausalLM

        which = "default" if name == "accumulation" else name.split("-accumulation")[0].split("-tokens")[0]
        which = which.split("-of")[0]
        if (models, which) not in known:
            result = worker.run(folder, models, which, 1)
            start = AutoModelForCausalLM.from_pretrained(folder / models / "student")
            result["start"] = torch.cat([p.detach().flatten() for p in start.parameters()])
            known[models, which] = result
        return known[models, which]

    return train


def test_what_travels_is_small(runs: Any, tiny_tokenizer: Any) -> None:
    def sent(models: str, name: str) -> list[list[tuple[int, ...]]]:
        return [rank[models, name]["sent"] for rank in runs]

    H, updates = 48, 3
    assert len(tiny_tokenizer) > H
    for models in ("plain", "capped"):  # hidden states, also where the model bends its logits
        shapes = sent(models, "default")
        assert [len(of_rank) for of_rank in shapes] == [2 * updates] * 2
        for (n, first), (m, second) in zip(shapes[0][::2], shapes[1][::2], strict=True):
            assert first == second == H
            assert ((n, n + m), (m, n + m)) in zip(shapes[0][1::2], shapes[1][1::2], strict=True)
    # Both passes over a window share its gathers.
    assert [len(of_rank) for of_rank in sent("plain", "accumulation")] == [2 * updates] * 2
    assert sent("plain", "sinkd-of-each-device") == [[], []]


def test_gathers_keep_every_bit_of_unequal_rows(folder: Path) -> None:
    for rank in (0, 1):
        for expected, gathered in torch.load(folder / f"gathers-{rank}.pt"):
            assert gathered.dtype == expected.dtype
            assert torch.equal(gathered, expected)
