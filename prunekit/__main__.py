"""``python -m prunekit``: the same as the ``prunekit`` command."""

import os
import sys

from prunekit.cli import main

code = main()
if "RANK" in os.environ:
    # torch keeps a process group in caches (DTensor's) to the end of Python, where its threads may abort the process.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
sys.exit(code)
