"""Short forms of the scripts that load a service heavily.

They are `overload.py`, with the worst requests, `leave.py`, whose clients leave them, and `soak.py`, with kills.
"""

import random

import pytest

from gradest_service.settings import Settings
from tests.service.leave import leave
from tests.service.overload import MOST_MEGABYTES, overload
from tests.service.soak import soak
from tests.service.worst_requests import ROUTES, WorstRequests

pytestmark = pytest.mark.deep


def test_the_worst_requests_stay_within_memory():
    measured = overload(20, clients=4, deadline=10)
    assert measured.megabytes < MOST_MEGABYTES, measured
    assert measured.megabytes > 100, measured
    assert not measured.faults, measured
    assert sum(measured.statuses.values()) > 3, measured


def test_every_route_has_its_worst_requests():
    left = set(ROUTES)
    for request in WorstRequests(Settings(), order=random.Random(0)):
        left.discard(request.path)
        if not left:
            return
    pytest.fail(f"none of {sorted(left)}")


def test_work_ends_soon_after_its_client_has_left():
    """One may go on for longer: an operation of torch is not stopped, and a sort of the most entries takes .5 s by itself."""
    found = list(leave(40, share=0.3, seed=0))
    late = [str(left) for left in found if left.too_long]
    assert len(found) > 3
    assert len(late) <= 1, late


def test_workers_that_are_killed_make_no_answer_wrong_and_lose_none():
    soaked = soak(20, clients=8, kill_every=8)
    assert not soaked.faults, soaked
    assert len(soaked.answers) > 3, soaked
