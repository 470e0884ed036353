#!/bin/sh
# At most five minutes on a CUDA GPU, from the repository's root: the Triton kernels' tests, then the loss, the solver
# and the distance to the matrix products, into benchmarks/results/*_gpu.*. `PYTHON` names an interpreter that has the
# package and the extras `dev` and `bench`. What a limit cuts off goes on at the next call.
PYTHON=${PYTHON:-python}
failed=0
"$PYTHON" -c 'import sys, torch; sys.exit(0 if torch.cuda.is_available() else "torch sees no CUDA GPU here")' || exit 1
timeout 60 "$PYTHON" -m pytest -p no:xdist tests/kernels || failed=1
timeout 100 "$PYTHON" benchmarks/bench_loss.py || failed=1
timeout 60 "$PYTHON" benchmarks/bench_solver.py || failed=1
timeout 60 "$PYTHON" benchmarks/bench_limit.py || failed=1
exit $failed
