"""`python -m pipeline.kms FILE`: run the key server with the settings in FILE."""

import sys
from pathlib import Path

from pipeline.kms.server import run

if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m pipeline.kms FILE")
    sys.exit(run(Path(sys.argv[1])))
