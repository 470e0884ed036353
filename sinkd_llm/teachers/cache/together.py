"""Processes that write one cache together: the first acts for all, or all side by side; an error of one ends all."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist

from sinkd_llm.distributed import Ranks
from sinkd_llm.errors import InputError, first_line
from sinkd_llm.interrupts import INTERRUPTED_CODE, Interrupted
from sinkd_llm.library_errors import is_memory_full

T = TypeVar("T")

# Longer than a server is asked about any rows; a process that dies is noticed by its launcher.
_PATIENCE = timedelta(days=365)


def patient_ranks() -> Ranks | None:
    """The processes of the launch, who wait for each other as long as it takes; `None` where there is only one."""
    if Ranks.of() is None:
        return None
    return Ranks.of(dist.new_group(backend="gloo", timeout=_PATIENCE))


def first_alone(ranks: Ranks | None, work: Callable[[], T]) -> T:
    """
    What `work` returns on the first process, on all of them.

    Args:
        ranks ([`Ranks`], *optional*): the processes; `None` for one alone.
        work (`Callable`): what the first process does; the others wait.

    Raises:
        InputError: on all processes, if it failed.
    """
    if ranks is None:
        return work()
    told: dict[str, T | str] = {}
    failure: Exception | None = None
    if ranks.index == 0:
        try:
            told = {"result": work()}
        except Exception as error:
            failure, told = error, {"failure": _said(error, ranks)}
    with _in_contact(ranks):
        told = ranks.merged(told)
    if failure is not None:
        raise failure
    if "failure" in told:
        raise InputError(str(told["failure"]))
    result: T = told["result"]  # type: ignore[assignment]
    return result


def in_step(
    work: Iterator[int], ranks: Ranks | None, device: torch.device, on_progress: Callable[[int], None]
) -> None:
    """
    Lets every process do its work, one step of each at a time, so that all end soon if one fails.

    Args:
        work (iterator of `int`): of this process; after each step it says how much of it is done so far.
        ranks ([`Ranks`], *optional*): the processes; `None` for one alone.
        device (`torch.device`): where numbers are sent from.
        on_progress (`Callable[[int], None]`): gets how much all have done.

    Raises:
        InputError: on all processes, if the work of one fails, or one is gone; the process that failed raises its own
            error.
        Interrupted: on all, if one was stopped by a signal.
    """
    if ranks is None:
        for done in work:
            on_progress(done)
        return
    done, left = 0, True
    failure: BaseException | None = None
    while True:
        try:
            if left:
                done = next(work)
        except StopIteration:
            left = False
        except (Exception, KeyboardInterrupt) as error:
            failure = error
        try:
            with _in_contact(ranks):
                states = ranks.numbers(done, left, failure is not None, device=device)
                reasons = ranks.merged(_reason(failure, ranks)) if any(failed for *_, failed in states) else {}
        except InputError:
            if failure is None:
                raise
            # A process that was stopped by a signal, too, may have left already.
            raise failure from None
        if failure is not None:
            raise failure
        for code, text in reasons.values():
            raise Interrupted(text, code) if code else InputError(text)
        on_progress(sum(own for own, *_ in states))
        if not any(still for _, still, _ in states):
            return


def _reason(failure: BaseException | None, ranks: Ranks) -> dict[int, tuple[int, str]]:
    """The exit code of a process that was stopped, or 0, and what the others are to say."""
    if failure is None:
        return {}
    if isinstance(failure, KeyboardInterrupt):
        code = getattr(failure, "exit_code", INTERRUPTED_CODE)
        return {ranks.index: (code, str(failure) or "interrupted")}
    return {ranks.index: (0, _said(failure, ranks))}


def _said(failure: BaseException, ranks: Ranks) -> str:
    """What another process says of the error: it may be the only one whose words are seen."""
    if isinstance(failure, InputError):
        return str(failure)
    what = "the memory of its device is full" if is_memory_full(failure) else f"{type(failure).__name__}"
    advice = "lower per_device_eval_batch_size or max_length" if is_memory_full(failure) else "its own lines say where"
    return f"Process {ranks.index} of {ranks.count} ended: {what} ({first_line(failure)}); {advice}."


@contextmanager
def _in_contact(ranks: Ranks) -> Iterator[None]:
    """Says in one sentence that another process is gone."""
    try:
        yield
    except RuntimeError as error:
        raise InputError(
            f"Process {ranks.index} of {ranks.count} lost contact with another one, which died or did not answer in "
            f"time ({first_line(error)}). The last lines of that process say why; the same command then goes on after "
            "the last whole shards."
        ) from error
