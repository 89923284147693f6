"""One notebook through nbdev's own test runner, in a process of its own: `python -m tests.run_notebook NOTEBOOK [FLAG ...]`.

The flags name the cells to leave out.
"""

import sys
from pathlib import Path

from nbdev.config import get_config
from nbdev.test import test_nb

if __name__ == "__main__":
    path, left_out = Path(sys.argv[1]).resolve(), sys.argv[2:]
    everything = get_config().tst_flags.split()
    passed, _ = test_nb(path, skip_flags=everything, force_flags=sorted(set(everything) - set(left_out)), basepath=get_config().config_path)
    sys.exit(not passed)
