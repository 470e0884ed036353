"""Settings of a distillation that do not go together, or would do nothing beside each other."""

from typing import TYPE_CHECKING

from sinkd_llm.errors import InputError, SettingError, plain
from sinkd_llm.objectives import GROUP
from sinkd_llm.objectives.couplings import PROPORTION

if TYPE_CHECKING:
    from sinkd_llm.training.config import SinKDConfig


def check_distillation(args: "SinKDConfig") -> None:
    """
    Check what only [`SinKDConfig`] has.

    Args:
        args ([`SinKDConfig`]): each setting checked by itself.

    Raises:
        InputError: for the first that does not fit the others.
    """
    _check_teacher(args)
    if args.student_decoder_layers is not None and args.student_layers is None:
        raise InputError("student_decoder_layers is set without student_layers; give both.")
    if args.packing and args.pad_to_multiple_of is not None:
        raise InputError("packing and pad_to_multiple_of are both set, and a packed batch is not padded; drop one.")
    _check_groups(args)
    try:
        objective = args.objective()
    except InputError:
        raise
    except ValueError as error:
        raise InputError(str(error)) from error
    if args.transport_accumulation and objective.spans:
        check_proportions(args, "transport_accumulation")


def check_proportions(args: "SinKDConfig", joined_by: str) -> None:
    """
    Refuses the means of a problem whose rows are not all in one micro-batch.

    Args:
        args ([`SinKDConfig`]): the settings.
        joined_by (`str`): the setting that makes a problem reach further.

    Raises:
        SettingError: saying what to set.
    """
    if args.transported_weight > 0 and args.transported_coupling == PROPORTION:
        raise SettingError(
            "transported_coupling",
            f"is proportion, which compares the means of whole problems, and {joined_by} joins the rows of several "
            f"micro-batches or devices; set {joined_by} to false, or transport_scope to group or sequence.",
        )


def _check_teacher(args: "SinKDConfig") -> None:
    if len(args.named_teachers) > 1:
        raise InputError(f"{' and '.join(args.named_teachers)} are set; a run has one teacher, so give one of them.")
    names = ("teacher_model", "teacher_samples", "teacher_max_requests")
    if args.teacher_url is None and (any(getattr(args, name) for name in names) or args.teacher_rows_per_request > 1):
        raise InputError(
            f"{', '.join(names)} and teacher_rows_per_request are about a server; give its teacher_url, or leave them "
            "out. A model here is teacher_model_name_or_path."
        )
    if args.teacher_rows_per_request > 1 and args.group_column is not None:
        raise SettingError(
            "teacher_rows_per_request",
            f"is {args.teacher_rows_per_request}, which makes each request a group, and group_column "
            f"{args.group_column!r} says of other groups; leave one of both out.",
        )
    for name, weight in (("hidden_weight", args.hidden_weight), ("queue_weight", args.queue_weight)):
        given = next((one for one in ("teacher_cache", "teacher_file", "teacher_url") if getattr(args, one)), None)
        if weight > 0 and given is not None:
            raise SettingError(
                name,
                f"is {weight:g}, and {given} gives what a teacher says but no hidden states; set {name} to 0, or give "
                "the teacher itself (teacher_model_name_or_path).",
            )
    if args.teacher_load_in_4bit and args.teacher_load_in_8bit:
        raise InputError("teacher_load_in_4bit and teacher_load_in_8bit are both set; choose one of them.")


def _check_groups(args: "SinKDConfig") -> None:
    if args.transport_scope != GROUP:
        if args.group_column is not None and args.teacher_file is None:  # a file may be read by it
            raise SettingError(
                "group_column",
                f"would have no effect with transport_scope {args.transport_scope}; set transport_scope to group, or "
                "leave group_column out.",
            )
        return
    in_groups = args.teacher_cache is not None or args.teacher_rows_per_request > 1
    if args.group_column is None and not in_groups:  # a cache may know groups
        raise SettingError(
            "transport_scope",
            "is group, and nothing says of which group a row is; set group_column to a column of the training rows.",
        )
    if str(plain(args.train_sampling_strategy)) == "sequential":
        raise SettingError(
            "train_sampling_strategy",
            "is sequential, and with transport_scope group whole groups are put together to fill batches, which is "
            "another order of the rows; leave it out.",
        )
    if args.transport_accumulation:
        raise SettingError(
            "transport_accumulation",
            "would have no effect with transport_scope group: a group lies whole in one micro-batch; leave it out.",
        )
