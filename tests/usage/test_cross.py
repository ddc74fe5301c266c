"""The whole cross of ways of use with every pair of estimator and neuron."""

import pytest

from tests.usage import cells
from tests.usage.programs import CALLS
from tests.usage.ways import WAYS


@pytest.mark.deep
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("way", WAYS)
def test_cells(way, call):
    found = cells.summary([(case, cells.run(way, case)) for case in cells.cases_of(way, call)])
    assert found == cells.Kept.load().sums[way][call], f"the document of usage says otherwise; run {cells.RUN}"
