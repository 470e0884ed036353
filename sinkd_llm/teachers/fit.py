"""Whether a model fits a student as its teacher: the same classes or the same tokens, in the same order."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sinkd_llm.errors import InputError
from sinkd_llm.models.kinds import kind_of, output_size
from sinkd_llm.models.kinds.class_heads import class_order, class_words
from sinkd_llm.models.origin import name_of
from sinkd_llm.models.tokenizers import NoTokenizerError, check_same_tokenizer, load_tokenizer
from sinkd_llm.models.wrappers import unwrap

logger = logging.getLogger(__name__)


def check_pair(
    teacher: Any,
    teacher_name: str | None,
    student: Any,
    tokenizer: Any,
    trust: bool,
    classes: Sequence[str] | None = None,
) -> None:
    """
    Refuses a teacher whose outputs mean something else than the student's: other classes, other tokens.

    Args:
        teacher (`PreTrainedModel`): the teacher.
        teacher_name (`str`, *optional*): what it was loaded by. Default: what the model says of itself.
        student (`PreTrainedModel`): the student.
        tokenizer (`PreTrainedTokenizerBase`): the tokenizer whose ids both models will read.
        trust (`bool`): whether code that comes with the teacher's tokenizer may run.
        classes (`Sequence[str]`, *optional*): the task's, in its order, in which heads without names are read.

    Raises:
        InputError: with the first difference. Vocabularies that are padded to different sizes pass if their
            tokenizers agree, and so do kinds that score the same vocabulary.
    """
    kinds = [kind_of(model) for model in (teacher, student)]
    sizes = [output_size(model) for model in (teacher, student)]
    if kinds[0].scores_classes != kinds[1].scores_classes:
        raise InputError(
            f"The teacher is {kinds[0].title} and the student {kinds[1].title}: "
            "classes cannot be compared with words. Choose two models of one kind, or rows with answer choices and "
            "signal choices."
        )
    if kinds[0].scores_classes and sizes[0] != sizes[1]:
        raise InputError(
            f"The teacher's classification head has {sizes[0]} outputs and the student's {sizes[1]}; fine-tune the "
            "teacher on this task, or load the student with as many labels."
        )
    if kinds[0].scores_classes:
        words = [class_words(unwrap(model).config) for model in (teacher, student)]
        check_class_order(words[0], words[1], classes)
    name = teacher_name or name_of(teacher)
    if name:
        teacher_tokenizer = tokenizer_of(name, teacher_name is not None, trust)
        if teacher_tokenizer is not None:
            check_same_tokenizer(teacher_tokenizer, tokenizer)
            return
        logger.warning(
            "%s holds no tokenizer of the teacher, which is assumed to read the student's tokens; if it was trained "
            "with another tokenizer, its predictions are about other words. Save its tokenizer in its folder.",
            name,
        )
    if kinds[0].scores_classes:
        sizes = [model.get_input_embeddings().weight.shape[0] for model in (teacher, student)]
    if sizes[0] != sizes[1]:
        raise InputError(
            f"The teacher knows {sizes[0]} tokens and the student {sizes[1]}, and the teacher's tokenizer could "
            "not be found to check that they agree; give the teacher by name, or save its tokenizer beside it."
        )


def check_class_order(
    theirs: tuple[str, ...] | None, ours: tuple[str, ...] | None, classes: Sequence[str] | None
) -> None:
    """
    Refuses a teacher whose classes stand in another order than the student's: the loss compares their numbers.

    Args:
        theirs, ours (`tuple[str, ...]`, *optional*): the [`class_words`] of teacher and student.
        classes (`Sequence[str]`, *optional*): the task's, in its order, in which heads without names are read.

    Raises:
        InputError: with both orders, and what to change.
    """
    reordered = bool(theirs and ours) and theirs != ours and set(theirs or ()) == set(ours or ())
    if not reordered and classes:
        # A head that calls its classes something else is read in the task's order.
        reordered = class_order(tuple(classes), theirs) != class_order(tuple(classes), ours)
    if not reordered:
        return
    each = [
        ", ".join(words) if words else "without names, taken in the task's order: " + ", ".join(classes or ())
        for words in (theirs, ours)
    ]
    raise InputError(
        f"The teacher's classes are {each[0]}, and the student's {each[1]}: the same in another order, and the loss "
        "compares them by number. Start the student from its encoder without a classification head, and it gets one "
        "in the teacher's order; or cut it from the teacher (student_layers). If a head's order is known to be "
        "another, write it into id2label of its config.json."
    )


def tokenizer_of(name: str, is_named: bool, trust: bool) -> Any:
    """
    The tokenizer of a teacher, or `None` if it came without one; then its width is all that can be checked.

    Args:
        name (`str`): of the teacher.
        is_named (`bool`): somebody gave this name; otherwise the model says so of itself.
        trust (`bool`): whether code that comes with the tokenizer may run.

    Raises:
        InputError: for a tokenizer that is there and cannot be read.
    """
    try:
        return load_tokenizer(name, trust_remote_code=trust)
    except NoTokenizerError:
        return None
    except InputError as error:
        if not is_named and not Path(name).exists():
            return None  # a model in memory, whose folder is gone or was never on this machine
        raise InputError(
            f"The teacher's tokenizer cannot be read, so it may have other tokens than the student's: {error}"
        ) from error
