"""Groups of a transport problem in training: other ones in each update, and the same ones after a resume."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sinkd_llm import SinKDConfig, SinKDTrainer
from tests.support.trainers import ONLY_SINKD, gradients, microbatches


def test_0_cuts_no_problem(tmp_path: Path) -> None:
    def size(given: int | None) -> int | None:
        args = SinKDConfig(str(tmp_path), transport_group_size=given, report_to="none")
        return args.objective().transport_settings.transport_group_size

    assert [size(given) for given in (0, None, 2, 256)] == [None, None, 2, 256]


def test_seeds_differ_between_updates_and_runs(tmp_path: Path) -> None:
    runs = [SinKDConfig(str(tmp_path), seed=seed, report_to="none") for seed in (0, 1, 2**32 - 1)]
    seeds = {args.group_seed(update) for args in runs for update in (0, 1, 10**9)}
    assert len(seeds) == 9
    for seed in seeds:
        torch.Generator().manual_seed(seed)


def test_one_group_is_the_whole_problem_and_several_are_another(train: Callable[..., SinKDTrainer]) -> None:
    def loss(size: int, update: int = 0) -> tuple[float, torch.Tensor]:
        trainer = train(transport_group_size=size, **ONLY_SINKD)
        trainer.state.global_step = update
        return gradients(trainer, microbatches(trainer, [8]))

    whole, whole_gradient = loss(0)
    one, one_gradient = loss(256)
    assert one == whole
    assert torch.equal(one_gradient, whole_gradient)
    cut = [loss(2, update)[0] for update in (0, 1, 0)]
    assert cut[0] == cut[2]
    assert len({whole, cut[0], cut[1]}) == 3


@pytest.mark.parametrize("window", [{}, {"transport_accumulation": True, "gradient_accumulation_steps": 2}])
def test_a_resumed_run_has_the_groups_of_the_uninterrupted_one(
    window: dict[str, Any], train: Callable[..., SinKDTrainer], tiny_causal_lm: Callable[..., Any], tmp_path: Path
) -> None:
    def run(output: str, resume: str | None = None) -> list[float]:
        trainer = train(
            model=tiny_causal_lm(seed=1),
            output_dir=str(tmp_path / output),
            max_steps=4,
            save_strategy="steps",
            save_steps=2,
            transport_group_size=3,
            **window,
        )
        trainer.train(resume_from_checkpoint=resume)
        return [record["loss"] for record in trainer.state.log_history if "loss" in record]

    whole = run("whole")
    resumed = run("resumed", str(tmp_path / "whole" / "checkpoint-2"))
    assert resumed == whole
