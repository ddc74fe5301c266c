"""The noise in dieharder, a published battery of tests (Brown, Eddelbuettel and Bauer 2003), along each of its coordinates.

A p-value below 1e-6 fails. There are fewer than 400, so a right generator would fail for at most one of 2,500 new versions.
"""

import re
import shutil
import subprocess
import sys

import pytest

from tests.kernels.words import ORDERS

pytestmark = [
    pytest.mark.deep,
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(shutil.which("dieharder") is None, reason="needs dieharder"),
]

TESTS = {  # the number of each test, and how often it is repeated for one p-value
    0: 20,  # spacings of birthdays
    2: 1,  # ranks of 32 x 32 binary matrices
    8: 5,  # counts of ones, in a stream
    15: 5,  # runs up and down
    102: 2,  # serial patterns of up to 16 bits
    202: 5,  # orders of 5 numbers
}


def p_values(*arguments):
    """The p-values of all tests."""
    found = []
    for number, repetitions in TESTS.items():
        command = f"dieharder -g 200 -d {number} -p {repetitions} -D test_name -D pvalues -c ,"
        with subprocess.Popen(
            [sys.executable, "-m", "tests.kernels.words", *arguments], stdout=subprocess.PIPE
        ) as words:
            run = subprocess.run(command.split(), stdin=words.stdout, capture_output=True, text=True, check=True)
            words.stdout.close()
        found += [float(p) for p in re.findall(r",\s*([01]\.\d+)", run.stdout)]
    return found


@pytest.mark.parametrize("order", ORDERS)
def test_noise_along_each_coordinate(order):
    found = p_values(order)
    assert len(found) >= len(TESTS)
    assert min(found) > 1e-6


def test_a_weak_generator_fails():
    """Philox with two rounds."""
    assert min(p_values("counters", "2")) < 1e-6
