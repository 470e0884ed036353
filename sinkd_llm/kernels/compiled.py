"""The L1 tile on a CPU: `l1_tile.c`, compiled for this processor by the machine's C compiler when first needed.

The compiler takes about 0.3 s, so that every process compiles for itself, in a folder that is gone afterwards: no
cache that another processor or another user could have written, and nothing to lock. `torch.compile` was measured
beside it: 15 s for the first call, and 1.4 to 2.7 times the time of a tile.

Shape suffixes: B transport problems, N student rows, M teacher rows, w columns of a vocabulary tile.
"""

import ctypes
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

SWITCH = "SINKD_COMPILE"  # 0: never call a compiler
_SOURCE = Path(__file__).with_name("l1_tile.c")
_COMPILERS = ("cc", "gcc", "clang")
_FLAGS = ("-O3", "-fopenmp-simd", "-fno-trapping-math", "-fno-math-errno", "-shared", "-fPIC")
_SECONDS = 60
# What a compiler may know of the environment: CPATH, COMPILER_PATH and their like would put other code into ours.
_PASSED_ON = ("PATH", "HOME", "TMPDIR", "LD_LIBRARY_PATH")
_WORK_OF_A_THREAD = 2**23  # differences: half a millisecond, ten times what starting a thread costs


@cache
def compiled_kernels() -> "CompiledKernels | None":
    """The compiled kernels, or None after one warning that says why there are none; None without a word where
    `SINKD_COMPILE=0`."""
    if os.environ.get(SWITCH, "") == "0":
        return None
    try:
        return _compile()
    except (OSError, RuntimeError, AttributeError, subprocess.SubprocessError) as error:
        logger.warning(
            "The L1 cost is computed by PyTorch's operators, which take about three times as long as compiled code: "
            "%s Install a C compiler, or set %s=0 to do without one.",
            error,
            SWITCH,
        )
        return None


def _compile() -> "CompiledKernels":
    compiler = next((found for name in _COMPILERS if (found := shutil.which(name))), None)
    if compiler is None:
        raise RuntimeError(f"there is no C compiler ({', '.join(_COMPILERS)}).")
    # Apple's compiler for ARM takes -mcpu where all others take -march.
    native = "-mcpu=native" if sys.platform == "darwin" else "-march=native"
    with tempfile.TemporaryDirectory(prefix="sinkd_kernels_") as folder:
        library = Path(folder) / "l1_tile.so"
        done = subprocess.run(
            [compiler, *_FLAGS, native, str(_SOURCE), "-o", str(library), "-lm"],
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            env={name: os.environ[name] for name in _PASSED_ON if name in os.environ},
        )
        if done.returncode != 0:
            raise RuntimeError(f"{compiler} could not compile {_SOURCE}: {done.stderr.strip()[-500:]}")
        kernels = CompiledKernels(ctypes.CDLL(str(library)))
    kernels.check()
    return kernels


class CompiledKernels:
    """`add_cost` and `cost_gradient` of `sinkd_llm.optimal_transport.tiles` for the L1 norm and fp32."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._cost, self._gradient = library.l1_cost, library.l1_gradient
        for function in (self._cost, self._gradient):
            function.restype = None

    def add_l1_cost(self, cost_BNM: Tensor, student_BNw: Tensor, teacher_BMw: Tensor) -> None:
        x_BNw, y_BMw = _rows(student_BNw), _rows(teacher_BMw)

        def run(cost_bnM: Tensor, x_bnw: Tensor, y_bMw: Tensor) -> None:
            B, N, w = x_bnw.shape
            self._cost(
                *_pointer(cost_bnM, 3), *_pointer(x_bnw, 2), *_pointer(y_bMw, 2), *_integers(B, N, y_bMw.shape[1], w)
            )

        _in_threads(run, (cost_BNM, x_BNw), y_BMw)

    def l1_gradient(self, student_BNw: Tensor, teacher_BMw: Tensor, grad_BNM: Tensor) -> Tensor:
        x_BNw, y_BMw, grad_BNM = _rows(student_BNw), _rows(teacher_BMw), grad_BNM.float()
        out_BNw = torch.empty(x_BNw.shape, dtype=torch.float32)

        def run(out_bnw: Tensor, x_bnw: Tensor, grad_bnM: Tensor, y_bMw: Tensor) -> None:
            B, N, w = x_bnw.shape
            self._gradient(
                *_pointer(out_bnw, 2), *_pointer(x_bnw, 2), *_pointer(y_bMw, 2), *_pointer(grad_bnM, 3),
                *_integers(B, N, y_bMw.shape[1], w),
            )  # fmt: skip

        _in_threads(run, (out_BNw, x_BNw, grad_BNM), y_BMw)
        return out_BNw

    def check(self) -> None:
        """A few rows beside PyTorch's operators: a compiler that gets them wrong is not used."""
        generator = torch.Generator().manual_seed(0)
        x, y, g = (torch.rand(shape, generator=generator) for shape in ((2, 3, 100), (2, 6, 100), (2, 3, 6)))
        y[:, 0] = x[:, 0]
        difference = x[:, :, None] - y[:, None]
        cost = torch.zeros(2, 3, 6)
        self.add_l1_cost(cost, x, y)
        gradient = self.l1_gradient(x, y, g)
        expected = (g[..., None] * difference.sign()).sum(dim=2)
        if not torch.allclose(cost, difference.abs().sum(-1)) or not torch.allclose(gradient, expected, atol=1e-5):
            raise RuntimeError(f"the compiled code of {_SOURCE} gives other results than PyTorch here.")


def _in_threads(run: Callable[..., None], split: tuple[Tensor, ...], y_BMw: Tensor) -> None:
    """`run` over parts of the problems, or of the rows of `split` where there are fewer problems than threads.

    `ctypes` lets other threads run meanwhile. They live for this call, so that none is missing in a forked process.
    """
    B, N, w = split[1].shape
    threads = min(torch.get_num_threads(), B * N * y_BMw.shape[1] * w // _WORK_OF_A_THREAD, max(B, N))
    if threads < 2:
        run(*split, y_BMw)
        return
    dim = 0 if threads <= B else 1
    parts = [tensor.tensor_split(threads, dim=dim) for tensor in split]
    parts.append(y_BMw.tensor_split(threads, dim=0) if dim == 0 else (y_BMw,) * threads)
    with ThreadPoolExecutor(threads) as pool:
        for done in [pool.submit(run, *part) for part in zip(*parts, strict=True)]:
            done.result()


def _rows(tensor: Tensor) -> Tensor:
    """With columns side by side, as the kernels read them."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _pointer(tensor: Tensor, strides: int) -> tuple[ctypes.c_void_p | ctypes.c_int64, ...]:
    return ctypes.c_void_p(tensor.data_ptr()), *_integers(*tensor.stride()[:strides])


def _integers(*numbers: int) -> tuple[ctypes.c_int64, ...]:
    return tuple(ctypes.c_int64(number) for number in numbers)
