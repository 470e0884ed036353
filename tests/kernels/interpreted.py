"""Runs the Triton kernels on the tiles of a file, in Triton's interpreter, and writes what they gave to another.

A process of its own, because Triton reads `TRITON_INTERPRET` when it is imported.
"""

import sys

import torch

from sinkd_llm.kernels import triton_l1

if __name__ == "__main__":
    results = []
    for cost_BNM, student_BNw, teacher_BMw, grad_BNM in torch.load(sys.argv[1]):
        triton_l1.add_l1_cost(cost_BNM, student_BNw, teacher_BMw)
        results.append((cost_BNM, triton_l1.l1_gradient(student_BNw, teacher_BMw, grad_BNM)))
    torch.save(results, sys.argv[2])
