"""The Triton kernels against their twins, in Triton's interpreter on the CPU."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from tests.kernels.tiles import LAYOUTS, SHAPES, tile, twins

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.mark.skipif(find_spec("triton") is None, reason="needs triton: pip install 'sinkd-llm[triton]'")
def test_both_directions_equal_their_twins_in_the_interpreter(tmp_path: Path) -> None:
    cases = [*(tile(*shape) for shape in SHAPES), *(tile(2, 17, 33, 65, layout=layout) for layout in LAYOUTS)]
    expected = [twins(case) for case in cases]
    torch.save(cases, tmp_path / "cases.pt")
    subprocess.run(
        [sys.executable, "-m", "tests.kernels.interpreted", tmp_path / "cases.pt", tmp_path / "results.pt"],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        cwd=REPOSITORY,
        check=True,
    )
    results = torch.load(tmp_path / "results.pt")
    for (cost, gradient), (cost_twin, gradient_twin) in zip(results, expected, strict=True):
        torch.testing.assert_close(cost.double(), cost_twin, rtol=0, atol=1e-6)
        assert torch.equal(gradient.double(), gradient_twin)
