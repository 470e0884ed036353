"""The L1 tile of the cost in one pass, written for one kind of hardware. Knows tensors, and none of our words."""

from sinkd_llm.kernels.choose import L1Kernels, l1_kernels

__all__ = ["L1Kernels", "l1_kernels"]
