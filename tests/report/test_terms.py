"""The table of terms holds every name that the objectives emit, and none else."""

import itertools

import pytest
import torch

from sinkd_llm.objectives import DIVERGENCES, DistillationObjective, StateSettings, TopKSignal, TransportedSettings
from sinkd_llm.report.terms import COST, ENTROPY, LEARNING_RATE, LOSS, PLAN
from sinkd_llm.training.callbacks import describe_logs

N, V = 6, 10


@pytest.fixture(scope="module")
def emitted():
    """The terms and the diagnostics: of every divergence, with a teacher, a cached one or none; of a regression."""
    torch.manual_seed(0)
    student, teacher, labels = torch.randn(N, V), torch.randn(N, V), torch.randint(V, (N,))
    cached = TopKSignal.from_logits(teacher, teacher.topk(4).indices, [1.0, 2.0])
    cases = [
        (name, student, signal, labels) for name, signal in itertools.product(DIVERGENCES, (None, teacher, cached))
    ]
    cases.append(("kl", torch.rand(N, 1), torch.rand(N, 1), torch.rand(N)))
    places = {"example_N": torch.arange(N), "position_N": torch.zeros(N, dtype=torch.long)}
    outputs = [
        DistillationObjective(
            alpha=0.5,
            divergence=name,
            transported=TransportedSettings(transported_weight=float(student_NV.shape[1] > 1)),
        )(student_NV, signal, labels_N, **places, with_diagnostics=True)
        for name, student_NV, signal, labels_N in cases
    ]
    states = {StateSettings.HIDDEN, StateSettings.QUEUE}  # which are added by who has the states
    return {name for o in outputs for name in o.terms} | states, {name for o in outputs for name in o.diagnostics}


def test_every_term_has_a_label_and_every_label_a_term(emitted):
    terms, _ = emitted
    assert set(LOSS.labels) == terms | {"loss"}


def test_every_diagnostic_is_drawn_in_one_plot(emitted):
    _, diagnostics = emitted
    drawn = [name for plot in (PLAN, COST, ENTROPY) for name in plot.labels]
    assert sorted(drawn) == sorted(diagnostics)


def test_no_two_quantities_of_a_plot_are_called_the_same():
    for plot in (LOSS, PLAN, COST, ENTROPY, LEARNING_RATE):
        assert len(set(plot.labels.values())) == len(plot.labels), plot.title


def test_the_terminal_shows_the_terms_under_their_names(emitted):
    terms, diagnostics = emitted
    said = describe_logs(dict.fromkeys(terms | diagnostics, 0.5))
    assert {word for word in said.split() if word != "0.5"} == terms
