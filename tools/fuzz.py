"""`make fuzz`: the property tests with many inputs, from a seed that is printed.

    python -m tools.fuzz [--seed N] [--times N] [pytest arguments]

The same seed and versions try the same inputs again.
"""

import argparse
import os
import random
import sys

import pytest

LARGEST_SEED = 2**32


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=random.randrange(LARGEST_SEED), help="default: a new one")
    parser.add_argument("--times", type=int, default=1, help="this many times the usual number of inputs")
    args, more = parser.parse_known_args()
    if args.times < 1:
        parser.error(f"--times is {args.times}; give 1 or more")
    os.environ["SINKD_FUZZ"] = str(args.times)
    print(f"seed {args.seed}: python -m tools.fuzz --seed {args.seed} --times {args.times}", flush=True)
    options = ["-p", "no:cacheprovider", f"--hypothesis-seed={args.seed}", "--timeout=0"]
    code = pytest.main(["tests/properties", *options, *more])
    print(f"seed {args.seed}", flush=True)
    return int(code)


if __name__ == "__main__":
    sys.exit(main())
