"""Over what student and teacher of a run are compared: tokens (or classes) of both, or the answer choices of a row."""

import logging
from dataclasses import dataclass
from typing import Any

from sinkd_llm.errors import InputError, SettingError
from sinkd_llm.inputs.answer_choices import choice_sets
from sinkd_llm.inputs.over_choices import NO_LABEL
from sinkd_llm.models.kinds import TEACHER, kind_of
from sinkd_llm.models.origin import name_of
from sinkd_llm.models.tokenizers import check_same_tokenizer
from sinkd_llm.objectives import GROUP
from sinkd_llm.teachers import CachedTeacher
from sinkd_llm.teachers.fit import tokenizer_of
from sinkd_llm.training.config import SinKDConfig

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FoundSignal:
    """
    What `signal` comes to for a pair.

    Attributes:
        over_choices (`bool`): the answer choices are compared.
        teacher_tokenizer (`PreTrainedTokenizerBase`, *optional*): what the teacher reads with, over answer choices.
    """

    over_choices: bool
    teacher_tokenizer: Any = None


def signal_for(
    args: SinKDConfig, student: Any, teacher: Any, teacher_name: str | None, tokenizers: tuple[Any, Any], rows: Any
) -> FoundSignal:
    """
    The signal of a teacher that is here: what `args.signal` says, or with `auto` tokens where the pair allows it.

    Args:
        args ([`SinKDConfig`]): the settings.
        student, teacher (`PreTrainedModel` or `PeftModel`): the models.
        teacher_name (`str`, *optional*): what the teacher was loaded by.
        tokenizers (`tuple`): the run's, and the teacher's own if it was given.
        rows ([`~datasets.Dataset`], *optional*): to train on.

    Raises:
        InputError: where the pair or the rows do not allow what `args.signal` asks for.
    """
    if args.signal == "tokens" or (args.signal == "auto" and "choices" not in _columns(rows)):
        if (reason := why_rows_need_choices(rows)) is not None:
            raise InputError(f"signal is tokens, but {reason}; set signal to choices (or auto).")
        return FoundSignal(False)  # what does not fit is refused where the pair is checked
    tokenizer, theirs = tokenizers
    if theirs is None:
        theirs = own_tokenizer(teacher, teacher_name, tokenizer, args.trust_remote_code)
    reason = _why_choices(student, teacher, tokenizer, theirs) or why_rows_need_choices(rows)
    if args.signal == "auto" and reason is None:
        return FoundSignal(False)
    check_choice_rows(args, rows)
    if args.signal == "auto":
        logger.warning("The signal is over the answer choices, for %s.", reason)
    return FoundSignal(True, theirs)


def signal_to_cache(args: SinKDConfig, teacher_tokenizer: Any, tokenizer: Any, rows: Any) -> FoundSignal:
    """
    The signal that a cache for a run should hold, where its student is not here: what `args.signal` says, or with
    `auto` tokens where tokenizers and rows allow it.

    Args:
        args ([`SinKDConfig`]): the settings.
        teacher_tokenizer, tokenizer (`PreTrainedTokenizerBase`): the teacher's own, and the run's.
        rows ([`~datasets.Dataset`]): to cache.

    Raises:
        InputError: as [`signal_for`].
    """
    over_choices = args.signal == "choices"
    if args.signal == "auto" and "choices" in _columns(rows):
        over_choices = _differ(teacher_tokenizer, tokenizer) or why_rows_need_choices(rows) is not None
    elif (reason := why_rows_need_choices(rows)) is not None and not over_choices:
        raise InputError(f"signal is tokens, but {reason}; set signal to choices (or auto).")
    if not over_choices:
        return FoundSignal(False)
    check_choice_rows(args, rows, to_train=False)
    return FoundSignal(True, teacher_tokenizer)


def signal_of_cache(args: SinKDConfig, teacher: CachedTeacher, rows: Any) -> FoundSignal:
    """
    The signal of a teacher that ran earlier: what its cache holds.

    Raises:
        InputError: where `args.signal` asks for the other one, or the rows need it.
    """
    if args.group_column is not None and args.transport_scope != GROUP:
        raise SettingError(
            "group_column",
            f"would have no effect with transport_scope {args.transport_scope}; set transport_scope to group, or "
            "leave group_column out.",
        )
    holds = "choices" if teacher.over_choices else "tokens"
    if args.signal not in ("auto", holds):
        raise InputError(
            f"signal is {args.signal}, but the teacher cache {args.teacher_cache} holds {holds}; leave signal out, or "
            "write another cache."
        )
    if teacher.over_choices:
        check_choice_rows(args, rows)
        was = teacher.asked.get("choice_normalisation")
        if was not in (None, args.choice_normalisation):
            raise InputError(
                f"choice_normalisation is {args.choice_normalisation}, and the teacher cache {args.teacher_cache} "
                f"holds scores by {was}: the two would mean different things. Set choice_normalisation to {was}, or "
                "write another cache."
            )
        return FoundSignal(True)
    if (reason := why_rows_need_choices(rows)) is not None:
        raise InputError(
            f"The teacher cache {args.teacher_cache} holds tokens, but {reason}; write it again with signal choices."
        )
    return FoundSignal(False)


def _why_choices(student: Any, teacher: Any, tokenizer: Any, theirs: Any) -> str | None:
    """Why tokens (or classes) of the two cannot be compared, in words that follow a comma."""
    kinds = kind_of(teacher), kind_of(student)
    if kinds[0].scores_classes != kinds[1].scores_classes:
        return f"the teacher is {kinds[0].title} and the student {kinds[1].title}"
    return "teacher and student have different tokenizers" if _differ(theirs, tokenizer) else None


def _differ(theirs: Any, tokenizer: Any) -> bool:
    try:
        check_same_tokenizer(theirs, tokenizer)
    except InputError:
        return True
    return False


def why_rows_need_choices(rows: Any) -> str | None:
    """Why rows to train on can be compared over their answer choices alone, in words; `None` where they need not."""
    columns = _columns(rows)
    if TEACHER in columns:
        return "the teacher reads another prompt than the student"
    if {"choices", "label"} <= {*columns} and any(label in (None, NO_LABEL) for label in rows["label"][:]):
        return "some rows have no label, and so no answer with tokens"
    return None


def own_tokenizer(teacher: Any, name: str | None, tokenizer: Any, trust: bool) -> Any:
    """The tokenizer that belongs to a teacher, by its name or folder; `tokenizer` where none does."""
    known = name or name_of(teacher)
    found = tokenizer_of(known, name is not None, trust) if known else None
    return tokenizer if found is None else found


def _columns(rows: Any) -> list[str]:
    return getattr(rows, "column_names", None) or []


def check_choice_rows(args: SinKDConfig, rows: Any, to_train: bool = True) -> None:
    """
    Refuses rows that cannot be compared over their choices, and what a student could not learn of them.

    Args:
        args ([`SinKDConfig`]): the settings.
        rows ([`~datasets.Dataset`], *optional*): the rows.
        to_train (`bool`, *optional*, defaults to `True`): whether a student is trained on them now; a cache of them
            serves other settings, too.

    Raises:
        InputError: for the first thing that does not fit.
    """
    if rows is None:
        return
    if "choices" not in rows.column_names:
        raise InputError(
            "The signal is over the answer choices, and the rows have none; give rows of a task with choices, or two "
            "models with one tokenizer and signal tokens."
        )
    if not to_train:
        return
    if args.packing:
        raise InputError("packing is on, and it lays single answers end to end, not choices; leave it out.")
    objective = args.objective()
    if objective.terms_across_rows and args.transport_scope == "sequence":
        logger.warning(
            "transport_scope is sequence, and over the answer choices a sequence is one row: %s compares row by row, "
            "the control without transport. Set transport_scope to batch for transport.",
            " and ".join(objective.terms_across_rows),
        )
    if args.vocabulary == "verbalizers":
        raise InputError(
            "vocabulary is verbalizers, and over the answer choices there are no other words to leave out; drop it."
        )
    labels = {*rows["label"][:]}
    if not (objective.transports or objective.has_divergence) and labels & {None, NO_LABEL}:
        raise InputError(
            "Some rows have no label, and without a divergence and without a transport term nothing is learned from "
            "them; raise alpha, choose a divergence, or leave these rows out."
        )
    lacks = objective.lacks(labels=bool(labels - {None, NO_LABEL}))
    if lacks is not None and objective.transported_settings is not None:
        raise InputError(lacks)
    if lacks is not None and args.transport_scope != "sequence":  # the published term alone is an experiment
        logger.warning("%s", lacks)
    if (across := objective.terms_across_rows) and (count := len(choice_sets(rows))) > 1:
        raise InputError(
            f"The rows have {count} different lists of choices, and {' and '.join(across)} would compare the first "
            "choice of one row with the first choice of another, which mean different things; set "
            f"{' and '.join(f'{term}_weight' for term in across)} to 0."
        )
