"""What tests of layers share."""

import warnings

import pytest
import torch


@pytest.fixture
def fresh_compiler():
    """What a test compiles is not there for the next; and the compiler's own code may warn."""
    torch._dynamo.reset()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="torch")
        yield
    torch._dynamo.reset()
