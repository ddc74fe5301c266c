"""`python -m gradest_experiments` is the command `gradest`, in all processes that torchrun has started.

    torchrun --nproc-per-node 2 -m gradest_experiments train --data mnist --out runs/two

The processes share each minibatch of the run; only the first one writes files and prints.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from gradest.cli import main
from gradest.estimation.distributed import rank
from gradest_experiments.engine.distributed import processes


@contextmanager
def _processes() -> Iterator[None]:
    """Join the processes of torchrun for the block; without torchrun, do nothing."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        yield
        return
    with processes():
        if rank():
            sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  # until the process ends
        yield


if __name__ == "__main__":
    with _processes():
        main()
