"""The whole cross of ways of use with every pair of estimator and neuron."""

import pytest

from tests.usage import cells
from tests.usage.programs import CALLS, cases
from tests.usage.ways import WAYS


@pytest.mark.slow
@pytest.mark.deep
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("way", WAYS)
def test_cells(way, call):
    kept = cells.Kept.load()
    chosen = cells.cases_of(way, call, cases(), kept.pairs)
    found = cells.summary([(case, cells.run(way, case)) for case in chosen])
    assert found == {name: kept.sums[way][call][name] for name in found}, (
        f"the document of usage says otherwise; run {cells.RUN}"
    )
