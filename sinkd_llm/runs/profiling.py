"""How fast a model answers one row alone, and how much memory that takes."""

import itertools
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from sinkd_llm.distributed import Ranks
from sinkd_llm.report.results import ResultRow

if TYPE_CHECKING:
    import torch

    from sinkd_llm.evaluation import TaskEvaluator

# A model is timed for so long, in seconds, or on so many answers.
_SECONDS = 2.0
_ANSWERS = 100
_ROWS = 50
# Of fewer answers a 95th percentile is only the largest, so that a slow model is timed for longer, up to so long.
_FEWEST_FOR_P95 = 20
_MOST_SECONDS = 10.0


def profile(row: ResultRow, evaluator: "TaskEvaluator", model: Any, device: "torch.device | None" = None) -> None:
    """
    Times a model on rows of a task, one at a time, for two seconds or longer, and counts the bytes that one row needs.

    The first answer is not timed: a model warms up, and keeps what all prompts begin with. Of a task whose answers are
    generated, and where processes share the work, nothing is said.

    Args:
        row ([`ResultRow`]): takes `latency_ms_p50`, with 20 answers or more `latency_ms_p95`, and
            `peak_memory_bytes`: the weights, and the most that the longest of the rows holds beside them.
        evaluator ([`TaskEvaluator`]): of the rows.
        model (`PreTrainedModel` or `PeftModel`): the model.
        device (`torch.device`, *optional*): where batches go. Default: where the model's weights are.
    """
    from sinkd_llm.memory.tracing import LiveBytes

    if evaluator.task.output_type == "generate_until" or Ranks.of() is not None:
        return
    step = max(1, len(evaluator.dataset) // _ROWS)
    places = list(range(0, len(evaluator.dataset), step))[:_ROWS]
    was_training = model.training
    model.eval()
    try:
        answer = evaluator.one_at_a_time(model, places, device)
        started = time.perf_counter()
        longest = max(places, key=lambda place: len(evaluator.dataset[place]["prompt"]))
        answer(longest)
        weights = [*model.parameters(), *model.buffers()]
        with LiveBytes(weights) as counter:
            answer(longest)
        seconds: list[float] = []
        for place in itertools.islice(itertools.cycle(places), _ANSWERS):
            before = time.perf_counter()
            answer(place)
            seconds.append(time.perf_counter() - before)
            most = _SECONDS if len(seconds) >= _FEWEST_FOR_P95 else _MOST_SECONDS
            if time.perf_counter() - started > most:
                break
    finally:
        model.train(was_training)
    row.peak_memory_bytes = sum(weight.numel() * weight.element_size() for weight in weights) + counter.peak
    row.latency_ms_p50 = 1000 * float(np.median(seconds))
    if len(seconds) >= _FEWEST_FOR_P95:
        row.latency_ms_p95 = 1000 * float(np.quantile(seconds, 0.95))
