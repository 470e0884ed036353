"""Tiles of the shapes and layouts that a kernel may get wrong, and their twins in fp64 from the formula."""

import torch
from torch import Tensor

Tile = tuple[Tensor, Tensor, Tensor, Tensor]

# B, N, M, w: one of everything; odd sizes around the blocks of the kernels; many problems; a tile in several cuts.
SHAPES = [(1, 1, 1, 1), (1, 5, 3, 7), (3, 16, 16, 64), (1, 17, 33, 65), (2, 7, 19, 700)]


def tile(B: int, N: int, M: int, w: int, *, layout: str = "contiguous") -> Tile:
    """Cost so far, student, teacher and G in fp32; the teacher's first row is the student's.

    G has multiples of 1/1024, of which fp32 makes exact sums.
    """
    generator = torch.Generator().manual_seed(B * N * M * w)
    x, y = (torch.randn(B, rows, w, generator=generator).softmax(-1) for rows in (N, M))
    y[:, 0] = x[:, 0]
    cost = torch.rand(B, N, M, generator=generator)
    grad = torch.randint(-1024, 1025, (B, N, M), generator=generator) / 1024
    if layout == "columns of wider rows":
        x, y = (torch.cat([z, z, z], dim=-1)[..., w : 2 * w] for z in (x, y))
    if layout == "transposed":
        x, y, grad, cost = (z.mT.contiguous().mT for z in (x, y, grad, cost))
    if layout == "expanded":
        x, y, grad = x[:1].expand(B, -1, -1), y[:1].expand(B, -1, -1), grad[..., :1].expand(-1, -1, M)
    return cost, x, y, grad


LAYOUTS = ["contiguous", "columns of wider rows", "transposed", "expanded"]


def twins(tile: Tile) -> tuple[Tensor, Tensor]:
    """`C + sum_v |s - t|` and `sum_j G sign(s - t)`, with all differences in memory."""
    cost, x, y, grad = (z.double() for z in tile)
    difference = x[:, :, None] - y[:, None]
    return cost + difference.abs().sum(-1), (grad[..., None] * difference.sign()).sum(2)
