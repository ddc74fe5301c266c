"""Runs the most work that is not looked into, of every route and plugin, and measures the processor's time of each.

    python tests/service/moment.py --seconds 300
    python tests/service/moment.py --seconds 300 --work 65536

The first is for one pass of gradest's own plugins without options, the second for whatever plugin and options, as
`limits.are_brief` has them. Such work goes on to its end if its client leaves. The routes that are left out report progress at
each step, and stop there. It fails if any takes half a second of the processor. GRADEST_KERNELS=reference measures it without
kernels.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from gradest.errors import GradestError
from gradest_service.admit import limits
from gradest_service.problems import Problem
from gradest_service.run import joint_pass, operations
from gradest_service.settings import Settings

sys.path.insert(0, str(Path(__file__).parents[2]))  # as a script it finds the other files of tests, too

from tests.service.worst_requests import ROUTES, WorstRequest, WorstRequests

MOST_SECONDS = 0.5


def moments(settings: Settings, share: float, seed: int, until: float) -> Iterator[tuple[float, int, str]]:
    """Yield the seconds, the work and the name of a random share of the largest requests that are not looked into."""
    run: dict[str, Callable[[Any], Any]] = {
        "/v1/sample": lambda job: joint_pass.sample([job]),
        "/v1/mean": lambda job: operations.mean(job, settings),
        "/v1/forward": lambda job: joint_pass.forward([job]),
        "/v1/backward": lambda job: joint_pass.backward([job]),
        "/v1/credit": operations.credit,
    }
    for request in WorstRequests(settings, random.Random(seed), share, until):
        if request.path in run:
            job = _admitted(request, settings)
            if limits.are_brief([job]):
                with suppress(Problem, GradestError):
                    yield _seconds(run[request.path], job), job.cost.work, f"{request.path} {request.what}"


def _admitted(request: WorstRequest, settings: Settings) -> Any:
    schema, admit = ROUTES[request.path]
    return admit(schema.model_validate(request.fields), settings)


def _seconds(run: Callable[[Any], Any], job: Any) -> float:
    began = time.process_time()
    run(job)
    return time.process_time() - began


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--share", type=float, default=1.0, help="of the requests, chosen at random")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=int, default=1 << 20, help="elements, as `limits.are_brief` has them")
    given = parser.parse_args()
    torch.set_num_threads(1)
    until = time.monotonic() + given.seconds
    settings = Settings(max_work=given.work, max_points=given.work, max_elements=given.work)
    found = list(moments(settings, given.share, given.seed, until))
    for seconds, work, what in sorted(found, reverse=True)[:30]:
        print(f"{seconds:.3f} s of the processor, work {work}: {what}")
    print(f"{len(found)} requests")
    raise SystemExit(1 if not found or max(found)[0] > MOST_SECONDS else 0)


if __name__ == "__main__":
    main()
