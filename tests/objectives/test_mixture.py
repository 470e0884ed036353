"""DistillationObjective: which terms, with which weights, normalised by what."""

import math
from dataclasses import asdict
from typing import Any

import pytest
import torch
from torch import Tensor

from sinkd_llm.objectives import (
    DIAGNOSTICS,
    DIVERGENCES,
    TERMS,
    DenseSignal,
    DistillationObjective,
    TopKSignal,
    TransportedSettings,
    TransportSettings,
    cross_entropy,
    mixture,
    sinkd_term,
    temperature_factor,
)
from sinkd_llm.objectives.comparison import Costs
from sinkd_llm.objectives.problems import Problems
from sinkd_llm.objectives.sinkd import SinKDTerm, solved_term
from sinkd_llm.optimal_transport import GRADIENTS
from tests.support import naive

N, V = 7, 12
WHERE = {
    "example_N": torch.tensor([0, 0, 1, 2, 2, 2, 3]),
    "position_N": torch.tensor([0, 1, 0, 0, 1, 2, 0]),
}
LABELS = torch.tensor([0, 11, 3, 4, 4, 7, 1])


def logits(seed: int, width: int = V) -> Tensor:
    return 2 * torch.randn(N, width, generator=torch.Generator().manual_seed(seed)).double()


@pytest.mark.parametrize("divergence", [*DIVERGENCES, "none"])
def test_the_loss_is_the_formula(divergence: str) -> None:
    s, t = logits(0), logits(1)
    objective = DistillationObjective(
        alpha=0.3, divergence=divergence, temperature=3.0, sinkhorn_weight=0.5, sinkhorn_temperature=1.5
    )

    def formula(x: Tensor) -> Tensor:
        total = 0.7 * naive.cross_entropy(x, LABELS).sum()
        if divergence != "none":
            factor = 3.0 if divergence == "tvd" else 9.0
            total = total + 0.3 * factor * naive.divergence(divergence, x, t, 3.0).sum()
        return (total + 0.5 * naive.sinkd(x, t, [0] * N, temperature=1.5)) / N

    student, teacher = s.clone().requires_grad_(), t.clone().requires_grad_()
    output = objective(student, teacher, LABELS, **WHERE)
    torch.testing.assert_close(output.loss, formula(s))
    output.loss.backward()
    torch.testing.assert_close(student.grad, naive.gradient(formula, s), rtol=1e-7, atol=1e-10)
    assert teacher.grad is None
    assert output.diagnostics == {}
    assert not any(value.requires_grad for value in output.terms.values())


@pytest.mark.parametrize("divergence", [*DIVERGENCES, "none"])
def test_the_weighted_terms_add_up_to_the_loss(divergence: str) -> None:
    objective = DistillationObjective(divergence=divergence, transport_scope="position")
    output = objective(logits(0), logits(1), LABELS, **WHERE)
    weights = {"ce": 1 - objective.alpha, "sinkhorn": objective.sinkhorn_weight}
    total = sum(weights.get(name, objective.alpha) * term for name, term in output.terms.items())
    torch.testing.assert_close(output.loss, total)
    assert set(output.terms) == {"ce", "sinkhorn"} | ({divergence} - {"none"})


def test_without_a_teacher_it_is_cross_entropy() -> None:
    output = DistillationObjective()(logits(0), None, LABELS, **WHERE, with_diagnostics=True)
    torch.testing.assert_close(output.loss, cross_entropy(logits(0), LABELS).mean())
    assert set(output.terms) == {"ce"}
    assert set(output.diagnostics) == {"student_entropy"}


def test_num_items_normalises_the_whole_accumulation_window() -> None:
    """CE and KL of two micro-batches add up to those of one batch; scope `sequence` does too."""
    objective = DistillationObjective(transport_scope="sequence")
    whole = objective(logits(0), logits(1), LABELS, **WHERE)
    parts = [
        objective(
            logits(0)[rows],
            logits(1)[rows],
            LABELS[rows],
            **{name: tensor[rows] for name, tensor in WHERE.items()},
            num_items=items,
        )
        for rows, items in ((slice(0, 3), N), (slice(3, N), torch.tensor(N)))
    ]
    torch.testing.assert_close(parts[0].loss + parts[1].loss, whole.loss)
    # Of the rows themselves, whatever the window is:
    torch.testing.assert_close((3 * parts[0].terms["ce"] + 4 * parts[1].terms["ce"]) / 7, whole.terms["ce"])
    # A batch-wide transport problem is not the sum of two smaller ones.
    batch = DistillationObjective()
    whole_sinkhorn = batch(logits(0), logits(1), LABELS, **WHERE).terms["sinkhorn"]
    halves = [
        batch(logits(0)[rows], logits(1)[rows], LABELS[rows], **{k: v[rows] for k, v in WHERE.items()}).terms[
            "sinkhorn"
        ]
        for rows in (slice(0, 3), slice(3, N))
    ]
    assert abs((3 * halves[0] + 4 * halves[1]) / 7 - whole_sinkhorn) > 1e-3


@pytest.mark.parametrize("with_teacher", [False, True])
@pytest.mark.parametrize("scope", ["batch", "position", "sequence"])
@pytest.mark.parametrize("num_items", [None, 0, 5, torch.tensor(0)])
def test_no_supervised_token(with_teacher: bool, scope: str, num_items: Any) -> None:
    hidden = torch.rand(4, 3, requires_grad=True)
    student = (hidden @ torch.rand(3, V))[:0]
    output = DistillationObjective(transport_scope=scope)(
        student,
        torch.rand(0, V) if with_teacher else None,
        LABELS[:0],
        **{name: tensor[:0] for name, tensor in WHERE.items()},
        num_items=num_items,
        with_diagnostics=True,
    )
    assert output.loss == 0
    output.loss.backward()
    assert torch.equal(hidden.grad, torch.zeros(4, 3))
    assert all(value == 0 for value in (*output.terms.values(), *output.diagnostics.values()))


@pytest.mark.parametrize(("student_width", "teacher_width"), [(12, 15), (15, 12)])
def test_padded_vocabularies_are_compared_over_the_shared_ids(student_width: int, teacher_width: int) -> None:
    s, t = logits(0, student_width), logits(1, teacher_width)
    objective = DistillationObjective(alpha=0.5)
    student = s.clone().requires_grad_()
    output = objective(student, t, LABELS, **WHERE, with_diagnostics=True)
    cropped = objective(s[:, :12], t[:, :12], LABELS, **WHERE, with_diagnostics=True)
    for name in ("kl", "sinkhorn"):
        torch.testing.assert_close(output.terms[name], cropped.terms[name])
    assert output.diagnostics == cropped.diagnostics
    torch.testing.assert_close(output.terms["ce"], cross_entropy(s, LABELS).mean())
    output.loss.backward()
    assert student.grad.shape == (N, student_width)


def test_verbalizers_restrict_the_sinkd_term_only() -> None:
    ids = [2, 5, 9]
    s, t = logits(0), logits(1)
    full = DistillationObjective()(s, t, LABELS, **WHERE)
    few = DistillationObjective(vocabulary="verbalizers")(s, t, LABELS, **WHERE, verbalizer_ids=ids)
    assert few.terms["ce"] == full.terms["ce"]
    assert few.terms["kl"] == full.terms["kl"]
    expected = sinkd_term(s[:, ids], t[:, ids], **WHERE).value / N
    torch.testing.assert_close(few.terms["sinkhorn"], expected)
    with pytest.raises(ValueError, match="needs verbalizer_ids"):
        DistillationObjective(vocabulary="verbalizers")(s, t, LABELS, **WHERE)


def test_diagnostics() -> None:
    s, t = logits(0), logits(1)
    output = DistillationObjective()(s, t, LABELS, **WHERE, with_diagnostics=True)
    term = sinkd_term(s, t, **WHERE)
    assert output.diagnostics["sinkhorn/row_error"] == term.row_error
    assert output.diagnostics["sinkhorn/diagonal_mass"] == term.diagonal_mass
    assert output.diagnostics["sinkhorn/plan_entropy"] == term.plan_entropy
    for side, x in (("student", s), ("teacher", t)):
        p = naive.softmax(x)
        torch.testing.assert_close(output.diagnostics[f"{side}_entropy"], -(p * p.log()).sum(dim=-1).mean())


def test_every_setting_reaches_the_sinkd_term(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def spy(costs: Costs, problems: Problems, settings: TransportSettings) -> SinKDTerm:
        seen.update(settings=settings, problems=problems)
        return solved_term(costs, problems, settings)

    monkeypatch.setattr(mixture, "solved_term", spy)
    settings = {
        "sinkhorn_temperature": 1.5,
        "sinkhorn_epsilon": 0.2,
        "sinkhorn_iterations": 11,
        "sinkhorn_threshold": 1e-3,
        "sinkhorn_gradient": "implicit",
        "cost_norm": "sql2",
        "transport_scope": "sequence",
        "vocabulary": "verbalizers",
        "transport_group_size": 4,
    }
    objective = DistillationObjective(**settings)
    objective(logits(0), logits(1), LABELS, **WHERE, verbalizer_ids=[1, 2], group_seed=5)
    assert {name: value for name, value in asdict(seen["settings"]).items() if name[0] != "_"} == settings
    expected = seen["settings"].problems(WHERE["example_N"], WHERE["position_N"], seed=5)
    assert torch.equal(seen["problems"].key_N, expected.key_N)


@pytest.mark.parametrize(
    ("settings", "missing"),
    [
        ({"alpha": 1.0}, "ce"),
        ({"alpha": 0.0}, "kl"),
        ({"divergence": "none"}, "kl"),
        ({"sinkhorn_weight": 0.0}, "sinkhorn"),
    ],
)
def test_a_term_without_weight_is_not_computed(settings: dict[str, Any], missing: str) -> None:
    output = DistillationObjective(**settings)(logits(0), logits(1), LABELS, **WHERE)
    assert missing not in output.terms
    assert output.terms


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_masked_logits_do_not_poison_the_loss(gradient: str) -> None:
    s, t = logits(0).float(), logits(1).float()
    s[:, 9] = t[:, 9] = -math.inf
    student = s.requires_grad_()
    output = DistillationObjective(sinkhorn_gradient=gradient)(student, t, LABELS, **WHERE)
    output.loss.backward()
    assert output.loss.isfinite()
    assert student.grad.isfinite().all()


def test_bf16_logits_give_an_fp32_loss_and_a_bf16_gradient() -> None:
    s, t = logits(0).bfloat16().requires_grad_(), logits(1).bfloat16()
    output = DistillationObjective()(s, t, LABELS, **WHERE)
    exact = DistillationObjective()(s.detach().double(), t.double(), LABELS, **WHERE)
    output.loss.backward()
    assert output.loss.dtype == torch.float32
    assert output.loss.item() == pytest.approx(exact.loss.item(), rel=1e-5)
    assert s.grad.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alpha": 1.1}, "alpha must be a number from 0 to 1, got 1.1"),
        ({"alpha": "0.5"}, "alpha must be a number from 0 to 1, got '0.5'"),
        ({"alpha": True}, "alpha must be a number from 0 to 1, got True"),
        ({"temperature": None}, "temperature must be a number from 0.01 to 100, got None"),
        ({"temperature": 1e-30}, "temperature must be a number from 0.01 to 100, got 1e-30"),
        ({"transported": None}, "transported must be a TransportedSettings, got NoneType; leave it out"),
        ({"transported": {"transported_weight": 1.0}}, r"got dict; give TransportedSettings\(\*\*transported\)"),
        ({"states": 1.0}, r"states must be a StateSettings, got float; give StateSettings\(\.\.\.\)"),
        ({"alpha": math.nan}, "alpha"),
        ({"divergence": "jsd"}, "divergence must be one of kl, rkl, js, tvd, .*none, got 'jsd'"),
        ({"sinkhorn_weight": -1}, "sinkhorn_weight must be a number from 0 to 1,000,000"),
        ({"sinkhorn_temperature": math.inf}, "sinkhorn_temperature"),
        ({"sinkhorn_epsilon": 0}, "sinkhorn_epsilon"),
        ({"sinkhorn_iterations": 0}, "sinkhorn_iterations"),
        ({"sinkhorn_threshold": -0.1}, "sinkhorn_threshold"),
        ({"sinkhorn_gradient": "x"}, "sinkhorn_gradient must be one of"),
        ({"cost_norm": "x"}, "cost_norm must be one of"),
        ({"transport_scope": "x"}, "transport_scope must be one of"),
        ({"vocabulary": "x"}, "vocabulary must be one of"),
        ({"alpha": 1, "divergence": "none", "sinkhorn_weight": 0}, "nothing to minimise"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DistillationObjective(**settings)


def test_rows_must_match() -> None:
    with pytest.raises(ValueError, match="one row for each of the student's 7"):
        DistillationObjective()(logits(0), logits(1)[:5], LABELS, **WHERE)
    with pytest.raises(ValueError, match="one row for each"):
        DistillationObjective()(logits(0), None, LABELS[:5], **WHERE)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"student": logits(0)[None]},
            r"student's logits must be \[N, V\], .*got shape \(1, 7, 12\); of logits \[B, L",
        ),
        ({"student": logits(0)[0]}, r"student's logits must be \[N, V\], .*got shape \(12,\)\.$"),
        ({"student": logits(0).long()}, "student's logits must be floating-point numbers, got torch.int64"),
        ({"student": TopKSignal.from_logits(logits(1), LABELS[:, None], [2.0])}, "student must be a tensor of logits"),
        ({"teacher": logits(1)[None]}, "teacher's logits must be"),
        ({"teacher": logits(1).tolist()}, "teacher must be a tensor of logits .* got list"),
        ({"teacher": DenseSignal(logits(1).long())}, "teacher's logits must be floating-point"),
        ({"labels_N": LABELS.byte()}, r"token ids of type int64, got torch.uint8; give labels_N.long\(\)"),
        ({"labels_N": LABELS > 3}, "token ids of type int64, got torch.bool"),
        ({"labels_N": LABELS.tolist()}, "labels_N must be a tensor, got list"),
        ({"labels_N": LABELS.where(LABELS > 0, -100)}, "labels_N has -100, and every row must have a label: leave"),
        ({"labels_N": LABELS + 1}, r"labels_N must lie in \[0, 12\), the ids that the student has, got \[12\]"),
        ({"taught_M": LABELS > -1}, "taught_M must be the numbers of rows, of type int64, got torch.bool"),
        *(
            (
                {name: LABELS[:3], "scope": scope},
                rf"{name} must have one entry for each of the 7 rows .* got shape \(3,\)",
            )
            for name in ("example_N", "position_N", "group_N")
            for scope in ("batch", "position", "sequence")
        ),
        ({"example_N": [0] * N}, "example_N must be a tensor, got list"),
    ],
)
def test_rows_that_cannot_be_compared_are_refused(given: dict[str, Any], message: str) -> None:
    arguments = {"student": logits(0), "teacher": logits(1), "labels_N": LABELS, **WHERE, **given}
    objective = DistillationObjective(transport_scope=arguments.pop("scope", "batch"))
    with pytest.raises(ValueError, match=message):
        objective(**arguments)


def test_labels_that_no_term_reads_are_not_looked_at() -> None:
    unlabelled = torch.full_like(LABELS, -100)
    with_labels, without = (
        DistillationObjective(alpha=1.0)(logits(0), logits(1), labels, **WHERE) for labels in (LABELS, unlabelled)
    )
    assert with_labels.loss == without.loss


def test_integers_of_32_bits_are_labels() -> None:
    student = logits(0).requires_grad_()
    losses = [DistillationObjective()(student, logits(1), labels, **WHERE).loss for labels in (LABELS, LABELS.int())]
    assert losses[0] == losses[1]
    losses[1].backward()


def test_a_second_gradient_is_refused_with_what_to_do() -> None:
    student = logits(0).requires_grad_()
    loss = DistillationObjective()(student, logits(1), LABELS, **WHERE).loss
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match=r"gradient of this loss was already taken .* Compute the loss again"):
        loss.backward()


def test_factors() -> None:
    assert [temperature_factor(name, 3.0) for name in ("kl", "rkl", "js", "tvd")] == [9.0, 9.0, 9.0, 3.0]


def test_what_is_given_has_the_names_that_are_announced() -> None:
    top_k = TopKSignal.from_logits(logits(1), logits(1).topk(4, dim=-1).indices, [1.0, 2.0])
    outputs = [
        DistillationObjective(divergence=name, transported=TransportedSettings(transported_weight=1.0))(
            logits(0), teacher, LABELS, **WHERE, with_diagnostics=True
        )
        for name in DIVERGENCES
        for teacher in (None, logits(1), top_k)
    ]
    values = torch.rand(3, N, dtype=torch.float64)
    outputs.append(
        DistillationObjective()(values[0][:, None], values[1][:, None], values[2], **WHERE, with_diagnostics=True)
    )
    assert {name for output in outputs for name in output.terms} == set(TERMS) - {"hidden", "queue"}  # of the trainer
    assert {name for output in outputs for name in output.diagnostics} == set(DIAGNOSTICS)
