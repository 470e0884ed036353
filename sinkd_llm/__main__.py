"""`python -m sinkd_llm` is `sinkd`."""

import sys

from sinkd_llm.cli import main

if __name__ == "__main__":
    sys.exit(main())
