"""What tests of the client share."""

import pytest

import gradest
from gradest_service.app import running


@pytest.fixture(scope="session")
def url():
    with running() as found:
        yield found


@pytest.fixture(scope="session")
def client(url):
    with gradest.Client(url) as found:
        yield found
