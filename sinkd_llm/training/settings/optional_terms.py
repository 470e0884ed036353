"""The settings of the terms of the loss that are off by default."""

from dataclasses import dataclass, field

from sinkd_llm.objectives import COUPLINGS, StateSettings, TransportedSettings
from sinkd_llm.training.settings.texts import described


@described
@dataclass
class OptionalTermArguments:
    r"""
    Settings of [`~sinkd_llm.SinKDConfig`]: the transported cross-entropy, and the terms of hidden states.

    Parameters:
        > Parameters that control the transported cross-entropy

        transported_weight (`float`, *optional*, defaults to `0.0`):
            Weight of the transported cross-entropy: the student learns from the teacher's rows of its transport
            problem, re-mixed by a plan, for teacher rows that are known per group or whose order is not to be
            trusted. `0` switches it off; about 10 where it is the teacher's only term.
        transported_temperature (`float`, *optional*, defaults to `1.0`):
            Temperature of both softmaxes. The term carries the usual temperature-squared factor.
        transported_epsilon (`float`, *optional*, defaults to `0.5`):
            Strength of the entropic regularisation of the plan, in nats.
        transported_iterations (`int`, *optional*, defaults to `20`):
            Iterations of the solver.
        transported_anchor (`float`, *optional*, defaults to `1.0`):
            How free the plan is of the pairs of row i with the teacher's row i: `1` does not know them, for teacher
            rows in any order; about `0.3` where most pairs hold; `0` is the KL divergence of the pairs.
        transported_coupling (`str`, *optional*, defaults to `"transport"`):
            The plan (`"transport"`), or a control in its place: each row with its own teacher row (`"identity"`), the
            nearest teacher rows (`"row_softmax"`), or the means of the rows of a problem (`"proportion"`).

        > Parameters that control the terms of hidden states

        hidden_weight (`float`, *optional*, defaults to `0.0`):
            Weight of the cosine distance between the hidden states of student and teacher, each the mean over a
            prompt, the student's projected by a matrix that is learnt and not saved with it. `0` switches it off. It
            needs a teacher that is a model here, and tokens or classes as `signal`. No gain was shown.
        queue_weight (`float`, *optional*, defaults to `0.0`):
            Weight of the cross-entropy between what teacher and student find a prompt to be like among the teacher's
            states of earlier batches (SEED), with the same states and the same projection. `0` switches it off. The
            gain that was seen is small and not settled.
        queue_size (`int`, *optional*, defaults to `4096`):
            The most states of earlier batches.
        queue_temperature (`float`, *optional*, defaults to `0.2`):
            By which the student's cosines are divided before their softmax.
        queue_teacher_temperature (`float`, *optional*, defaults to `0.01`):
            By which the teacher's cosines are divided before their softmax.
    """

    # The transported cross-entropy
    transported_weight: float = TransportedSettings.transported_weight
    transported_temperature: float = TransportedSettings.transported_temperature
    transported_epsilon: float = TransportedSettings.transported_epsilon
    transported_iterations: int = TransportedSettings.transported_iterations
    transported_anchor: float = TransportedSettings.transported_anchor
    transported_coupling: str = field(
        default=TransportedSettings.transported_coupling, metadata={"choices": COUPLINGS}
    )

    # The terms of hidden states
    hidden_weight: float = StateSettings.hidden_weight
    queue_weight: float = StateSettings.queue_weight
    queue_size: int = StateSettings.queue_size
    queue_temperature: float = StateSettings.queue_temperature
    queue_teacher_temperature: float = StateSettings.queue_teacher_temperature
