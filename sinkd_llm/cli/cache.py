"""`sinkd cache`: run a teacher once over a recipe's training rows."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sinkd_llm.runs.cache import CacheResult


def main(argv: Sequence[str]) -> int:
    """Parse `argv`, write the cache, print what it holds."""
    from sinkd_llm.cli.flag_table import check_names
    from sinkd_llm.cli.launching import launch

    check_names("cache", argv)
    if (code := launch("cache", argv)) is not None:
        return code
    from sinkd_llm.cli.parsing import parse_recipe
    from sinkd_llm.runs.cache import run_cache

    task_args, training_args, model_args, cache_args = parse_recipe("cache", argv)
    _show(run_cache(task_args, training_args, model_args, cache_args, argv=argv))
    return 0


def _show(result: "CacheResult") -> None:
    from sinkd_llm.terminal import show
    from sinkd_llm.units import format_bytes

    manifest, layout = result.manifest, result.manifest.layout
    each = manifest.bytes / max(manifest.tokens, 1)
    kept = {
        "topk": f"the {layout.k} largest of {layout.vocabulary_size} logits",
        "verbalizers": f"the logits of {layout.k} answer tokens",
        "full": f"all {layout.vocabulary_size} logits",
        "choices": f"the scores of {layout.vocabulary_size} answer choices",
        "groups": f"the scores of {layout.vocabulary_size} answer choices, with how often a group has them",
    }[layout.content]
    what, one = ("supervised tokens", "token")
    if layout.over_choices:
        what, one = ("answers of groups" if layout.content == "groups" else "rows with an answer", "row")
    show("")
    show(
        f"{manifest.tokens} {what} of {manifest.rows.examples} examples: {kept} ({layout.encoding}), "
        f"{format_bytes(manifest.bytes)}, {each:.0f} bytes a {one}"
    )
    if result.cached_before == manifest.rows.examples:
        show("All examples were cached already.")
    else:
        new = manifest.rows.examples - result.cached_before
        show(f"{result.seconds:.1f} s for {new} examples ({new / max(result.seconds, 1e-9):.1f} examples/s)")
    for temperature in layout.temperatures:
        show(
            f"temperature {temperature:g}: {manifest.mean_tail(temperature):.2%} of the teacher's mass is in the "
            f"tail, so the L1 cost (0 to 2) is known to within {manifest.cost_width(temperature):.3f}"
        )
    if result.warning is not None:
        show(f"Coarse: {result.warning}")
    if manifest.teacher_score is not None and manifest.teacher_score.get("metrics"):
        metrics = ", ".join(f"{name} {value:.3f}" for name, value in manifest.teacher_score["metrics"].items())
        show(f"The teacher scores {metrics} on {manifest.teacher_score['num_examples']} rows")
    show(f"The cache is in {result.folder}; train with --teacher_cache {result.folder}")
