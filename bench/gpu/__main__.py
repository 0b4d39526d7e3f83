"""`python -m bench.gpu`."""

import os
import sys

os.environ.pop("TRITON_INTERPRET", None)  # read when stn_triton is imported: nobody times an interpreter

try:
    import triton  # noqa: F401 - what it is about
except ImportError as error:
    sys.exit(f"python -m bench.gpu: expected triton to be installed: {error}")

from .command_line import main

sys.exit(main())
