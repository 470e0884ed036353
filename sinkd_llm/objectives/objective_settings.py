"""The settings of the loss, what it is made of, and what it needs of the data."""

from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from typing import Any

from sinkd_llm.objectives.couplings import PROPORTION, TransportedSettings
from sinkd_llm.objectives.divergences import DIVERGENCE_CHOICES, DIVERGENCES, NO_DIVERGENCE
from sinkd_llm.objectives.joint import SPANNING_SCOPES
from sinkd_llm.objectives.problems import VERBALIZERS, TransportSettings
from sinkd_llm.objectives.setting_checks import check_kind, check_numbers
from sinkd_llm.objectives.sinkd import SINKD_DIAGNOSTICS, SinKDTerm
from sinkd_llm.objectives.state_terms import StateSettings
from sinkd_llm.objectives.transport_term import PLAN_DIAGNOSTICS
from sinkd_llm.objectives.transported import TransportedTerm

# Names of what the objective gives, as they are logged. The report has a label for each.
CE, MSE, TEACHER_MSE, SINKHORN, TRANSPORTED = "ce", "mse", "teacher_mse", SinKDTerm.name, TransportedTerm.name
TEACHER_ENTROPY, STUDENT_ENTROPY = "teacher_entropy", "student_entropy"
TERMS = (CE, *DIVERGENCES, MSE, TEACHER_MSE, SINKHORN, TRANSPORTED, StateSettings.HIDDEN, StateSettings.QUEUE)
DIAGNOSTICS = (
    *(f"{SINKHORN}/{name}" for name in SINKD_DIAGNOSTICS),
    *(f"{TRANSPORTED}/{name}" for name in PLAN_DIAGNOSTICS),
    *(TEACHER_ENTROPY, STUDENT_ENTROPY),
)
# Whether hidden states and heads are taken as they are, or logits are made of them first.
FUSED = ("auto", "always", "never")


@dataclass(frozen=True)
class ObjectiveSettings:
    """The settings of [`~sinkd_llm.objectives.DistillationObjective`], and what follows from them.

    Args:
        alpha (`float`, *optional*, defaults to `0.9`):
            Weight of the divergence, in [0, 1]; CE has the rest.
        divergence (`str`, *optional*, defaults to `"kl"`):
            `"kl"`, `"rkl"`, `"js"`, `"tvd"` or `"none"`. Multiplied by
            [`~sinkd_llm.objectives.temperature_factor`]: its weight means the same at every temperature.
        temperature (`float`, *optional*, defaults to `2.0`):
            Temperature of the divergence.
        sinkhorn_weight (`float`, *optional*, defaults to `0.8`):
            Weight of the mean transport cost of a supervised token; the paper's beta, on the scale that
            docs/method.md converts.
        sinkhorn_temperature, sinkhorn_epsilon, sinkhorn_iterations, sinkhorn_threshold, sinkhorn_gradient, cost_norm,
        transport_scope, vocabulary, transport_group_size:
            The SinKD term's settings, see [`TransportSettings`].
        fused (`str`, *optional*, defaults to `"auto"`):
            What becomes of hidden states with a head ([`HeadOf`]): `"auto"` and `"always"` walk over the vocabulary
            without making logits `[N, V]` ([`~sinkd_llm.objectives.sweep`]), `"never"` makes them first. `"always"`
            refuses a student that comes as logits. The results are the same.
        transported ([`TransportedSettings`], *optional*):
            The transported cross-entropy, see [`transported_term`], over the rows of `transport_scope` and the ids of
            `vocabulary`. By default its weight is 0, and it is not computed.
        states ([`StateSettings`], *optional*):
            The terms of hidden states, which the objective does not see: who has the states adds the terms, see
            [`with_terms`]. By default their weights are 0.

    Raises:
        `ValueError`: for a setting out of its range or of another type, or settings that leave nothing to minimise.
    """

    alpha: float = 0.9
    divergence: str = "kl"
    temperature: float = 2.0
    sinkhorn_weight: float = 0.8
    sinkhorn_temperature: float = TransportSettings.sinkhorn_temperature
    sinkhorn_epsilon: float = TransportSettings.sinkhorn_epsilon
    sinkhorn_iterations: int = TransportSettings.sinkhorn_iterations
    sinkhorn_threshold: float | None = TransportSettings.sinkhorn_threshold
    sinkhorn_gradient: str = TransportSettings.sinkhorn_gradient
    cost_norm: str = TransportSettings.cost_norm
    transport_scope: str = TransportSettings.transport_scope
    vocabulary: str = TransportSettings.vocabulary
    transport_group_size: int | None = TransportSettings.transport_group_size
    fused: str = "auto"
    transported: TransportedSettings = field(default_factory=TransportedSettings)
    states: StateSettings = field(default_factory=StateSettings)

    def __post_init__(self) -> None:
        check_numbers(self)
        check_kind("transported", self.transported, TransportedSettings)
        check_kind("states", self.states, StateSettings)
        if self.fused not in FUSED:
            raise ValueError(f"fused must be one of {', '.join(FUSED)}, got {self.fused!r}.")
        if self.divergence not in DIVERGENCE_CHOICES:
            raise ValueError(f"divergence must be one of {', '.join(DIVERGENCE_CHOICES)}, got {self.divergence!r}.")
        _ = self.transport_settings  # which checks them
        if self.alpha == 1 and not self.has_divergence:
            if self.sinkhorn_weight == 0 and self.transported_settings is None:
                left = "nothing to minimise"
                if self.states.in_use:
                    left = "only terms of hidden states, from which the student's head learns nothing"
                raise ValueError(
                    f"alpha=1, divergence='none' and sinkhorn_weight=0 leave {left}; lower alpha to train on the "
                    "labels, or choose a divergence."
                )
            if self.transported_settings is not None and (lacks := self.lacks(labels=True)) is not None:
                raise ValueError(lacks)

    @cached_property
    def transport_settings(self) -> TransportSettings:
        """The settings of the SinKD term."""
        return TransportSettings(
            **{setting.name: getattr(self, setting.name) for setting in fields(TransportSettings) if setting.init}
        )

    @cached_property
    def transported_settings(self) -> TransportedSettings | None:
        """The settings of the transported cross-entropy, or `None` where it is not computed."""
        return self.transported if self.transported.transported_weight > 0 else None

    def by_name(self) -> dict[str, Any]:
        """All settings by the names that a run has for them."""
        settings = asdict(self)
        parts = settings.pop("transported"), settings.pop("states")
        return settings | parts[0] | parts[1]

    @property
    def uses_teacher(self) -> bool:
        """Whether the loss depends on the teacher; if not, its forward can be spared."""
        return self.alpha > 0 or self.transports or self.states.in_use

    @property
    def spans(self) -> bool:
        """Whether there are transport problems that could reach beyond a micro-batch of one device."""
        return self.transports and self.transport_scope in SPANNING_SCOPES

    @property
    def terms_of_pairs(self) -> tuple[str, ...]:
        """The terms in use that take teacher row i for the teacher's word on row i of the student: with the teacher's
        rows of a group in any order they would teach wrong pairs."""
        moved = self.transported_settings
        divergence = (self.divergence,) if self.has_divergence else ()
        return (*divergence, TRANSPORTED) if moved is not None and moved.uses_pairs else divergence

    @property
    def terms_across_rows(self) -> tuple[str, ...]:
        """The terms in use that compare column v of a row with column v of other rows: all rows of a problem must have
        the same answer choices."""
        sinkd = (SINKHORN,) if self.sinkhorn_weight > 0 else ()
        moved = self.transported_settings
        return (*sinkd, TRANSPORTED) if moved is not None and moved.mixes_rows else sinkd

    @property
    def temperatures(self) -> dict[str, float]:
        """The temperatures at which the mass of all ids of the teacher's is asked for, by their settings: a top-k
        signal must know its tail at each."""
        asked = {"temperature": self.temperature} if self.has_divergence else {}
        if self.vocabulary != VERBALIZERS:
            asked |= {"sinkhorn_temperature": self.sinkhorn_temperature} if self.sinkhorn_weight > 0 else {}
            if self.transported_settings is not None:
                asked["transported_temperature"] = self.transported_settings.transported_temperature
        return asked

    def lacks(self, *, labels: bool) -> str | None:
        """
        Why the student could not learn which class is which, or `None` where it can.

        Args:
            labels (`bool`): whether any row has a label.
        """
        if (labels and self.alpha < 1) or self.terms_of_pairs:
            return None
        free, moved = [SINKHORN] if self.sinkhorn_weight > 0 else [], self.transported_settings
        if moved is not None and moved.transported_coupling != PROPORTION:
            free.append(TRANSPORTED)  # the mean of a group says how much it has of each class
        if not free:
            return None
        from_labels = "Learn from the labels, too (alpha below 1)" if labels else "No row has a label: label some"
        return (
            f"Nothing beside {' and '.join(free)} says which class is which: it matches sets of rows, and a plan that "
            f"begins with a student who knows no class may give each class another one's rows. {from_labels}, or "
            "learn from a divergence between pairs, or from pairs that mostly hold (transported_anchor below 1)."
        )

    @property
    def transports(self) -> bool:
        """Whether there is a transport term."""
        return self.sinkhorn_weight > 0 or self.transported_settings is not None

    @property
    def has_divergence(self) -> bool:
        """Whether there is a divergence between pairs."""
        return self.alpha > 0 and self.divergence != NO_DIVERGENCE
