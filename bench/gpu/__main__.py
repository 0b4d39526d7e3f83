"""`python -m bench.gpu`."""

import os
import sys

os.environ.pop("TRITON_INTERPRET", None)  # read when stn_triton is imported: nobody times an interpreter

from .command_line import main

sys.exit(main())
