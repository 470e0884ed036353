"""What `sinkd env --estimate` prints: the parts of one device, every set-up on 1 to n devices, the teacher's forms."""

from collections.abc import Sequence

from sinkd_llm.cli.printing import WIDTH, show_wrapped
from sinkd_llm.memory import SETUPS, DeviceMemory
from sinkd_llm.memory.device import USABLE_SHARE
from sinkd_llm.runs.memory import MemoryEstimate
from sinkd_llm.terminal import show
from sinkd_llm.units import format_bytes, format_count

_NAMES = {
    "none": "no ZeRO",
    "zero1": "ZeRO-1",
    "zero2": "ZeRO-2",
    "zero3": "ZeRO-3",
    "zero3_offload": "ZeRO-3, offload",
}


def show_estimate(estimate: MemoryEstimate, devices: int, memory: int, memory_is: str) -> None:
    """
    Print an estimate.

    Args:
        estimate ([`MemoryEstimate`]): what was counted.
        devices (`int`): the most devices to show.
        memory (`int`): bytes of one device.
        memory_is (`str`): where that number comes from, in words.
    """
    student, teacher = estimate.student, estimate.teacher
    show_wrapped(f"sinkd {estimate.command}, one micro-batch: {estimate.batch}")
    if teacher is not None:
        show(f"teacher  {format_count(teacher.parameters)} parameters, {format_bytes(teacher.weights)}")
    show(
        f"student  {format_count(student.parameters)} parameters, {format_bytes(student.weights)}; "
        f"{format_count(student.trained)} trained"
    )
    show("")
    _show_parts(estimate)
    show("")
    counts = device_counts(devices)
    _show_setups(estimate, counts, memory, memory_is)
    if teacher is not None:
        show("")
        _show_teachers(estimate, counts[-1], memory)
    show("")
    show_wrapped(
        f"✓ where at most {USABLE_SHARE:.0%} of the memory is used: the rest is for the driver, fragmentation and the "
        "estimate's error."
    )
    state = "on" if estimate.checkpointing else "off"
    show_wrapped(f"This run has gradient_checkpointing {state}. Which set-up to choose: docs/large_models.md")


def device_counts(most: int) -> list[int]:
    """1, 2, 4, … and `most` itself."""
    counts = [1]
    while counts[-1] * 2 < most:
        counts.append(counts[-1] * 2)
    return counts if most == 1 else [*counts, most]


def _show_parts(estimate: MemoryEstimate) -> None:
    columns = {}
    for checkpointing in (False, True):
        step = estimate.steps[checkpointing]
        device = estimate.device("none", 1, checkpointing=checkpointing)
        columns[checkpointing] = {
            "student's weights": device.weights,
            "gradients": device.gradients,
            "optimizer": device.optimizer,
            "activations": step.activations,
            "teacher's weights": device.teacher,
            "teacher's forward": 0 if estimate.teacher_place == "cache" else step.teacher,
            "logits and transport": step.loss,
            "together, at the peak": device.total,
        }
    rows = [[name, format_bytes(columns[False][name]), format_bytes(columns[True][name])] for name in columns[False]]
    show(table(["One device", "", "gradient checkpointing"], rows))


def _show_setups(estimate: MemoryEstimate, counts: Sequence[int], memory: int, memory_is: str) -> None:
    show(f"Each device of {format_bytes(memory)} ({memory_is})")
    header = ["set-up", *(f"{n} device{'s' * (n > 1)}" for n in counts), "host"]
    rows = []
    for setup in SETUPS:
        for checkpointing in (False, True):
            cells = [estimate.device(setup, n, checkpointing=checkpointing) for n in counts]
            name = "  + gradient checkpointing" if checkpointing else _NAMES[setup]
            rows.append([name, *(_mark(cell, memory) for cell in cells), format_bytes(cells[-1].host)])
    show(table(header, rows))


def _show_teachers(estimate: MemoryEstimate, devices: int, memory: int) -> None:
    """The teacher's forms beside the student."""
    forms = [
        ("fp32, on each device", "float32", "replicate", '--teacher_model_init_kwargs \'{"dtype": "float32"}\''),
        ("bf16, on each device", "bfloat16", "replicate", '--teacher_model_init_kwargs \'{"dtype": "bfloat16"}\''),
        ("8 bit, on each device", "8bit", "replicate", "--teacher_load_in_8bit"),
        ("4 bit, on each device", "4bit", "replicate", "--teacher_load_in_4bit"),
        ("bf16, sharded; ZeRO-2", "bfloat16", "shard", "--accelerate_config zero2 --teacher_deepspeed shard"),
        ("bf16, offloaded; ZeRO-2", "bfloat16", "offload", "--accelerate_config zero2 --teacher_deepspeed offload"),
        ("from a cache", "bfloat16", "cache", "--teacher_cache"),
    ]
    rows = []
    for name, form, place, flag in forms:
        setup = "zero2" if place in ("shard", "offload") else "none"
        teacher = estimate.teacher_sizes[form]
        cell = estimate.device(setup, devices, checkpointing=estimate.checkpointing, teacher=teacher, place=place)
        rows.append([name, format_bytes(cell.teacher), _mark(cell, memory), flag])
    plural = "s" * (devices > 1)
    show(table([f"Teacher on {devices} device{plural}", "weights", "with the student", "flags"], rows))


def _mark(cell: DeviceMemory, memory: int) -> str:
    return f"{format_bytes(cell.total)} {'✓' if cell.fits(memory) else '✗'}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]], width: int = WIDTH) -> str:
    """
    Columns of text, the first on the left and the numbers on the right of their column.

    Args:
        header (`Sequence[str]`): a name a column.
        rows (`Sequence[Sequence[str]]`): the cells.
        width (`int`, *optional*): characters of a line; columns that do not fit follow below, beside the first again.
    """
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    blocks: list[list[int]] = [[]]
    for column in range(1, len(header)):
        if blocks[-1] and widths[0] + sum(2 + widths[i] for i in [*blocks[-1], column]) > width:
            blocks.append([])
        blocks[-1].append(column)
    return "\n\n".join(_block([0, *columns], widths, [header, *rows]) for columns in blocks)


def _block(columns: Sequence[int], widths: Sequence[int], rows: Sequence[Sequence[str]]) -> str:
    def cell(text: str, column: int) -> str:
        return text.ljust(widths[column]) if column == 0 or text.startswith("--") else text.rjust(widths[column])

    return "\n".join("  ".join(cell(row[i], i) for i in columns).rstrip() for row in rows)
