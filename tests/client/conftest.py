"""What tests of the client share."""

import pytest

import gradest
from gradest_service.app import running


@pytest.fixture(scope="session")
def client():
    with running() as url, gradest.Client(url) as found:
        yield found
