"""Short forms of the scripts that load a service heavily: `overload.py`, with the worst requests, and `soak.py`, with kills."""

import pytest

from tests.service.overload import MOST_MEGABYTES, overload
from tests.service.soak import soak

pytestmark = pytest.mark.deep


def test_the_worst_requests_stay_within_memory():
    measured = overload(20, clients=4, deadline=10)
    assert measured.megabytes < MOST_MEGABYTES, measured
    assert measured.megabytes > 100, measured
    assert not measured.faults, measured
    assert sum(measured.statuses.values()) > 3, measured


def test_workers_that_are_killed_make_no_answer_wrong_and_lose_none():
    soaked = soak(20, clients=8, kill_every=8)
    assert not soaked.faults, soaked
    assert len(soaked.answers) > 3, soaked
