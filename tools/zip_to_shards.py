#!/usr/bin/env python3
"""`hpc-mlp convert` from a checkout, without an installation of the console script.

python tools/zip_to_shards.py photos.zip shards --size 64
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from hpc_mlp.cli.data import convert

if __name__ == "__main__":
    convert(prog_name="zip_to_shards.py")
