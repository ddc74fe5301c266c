"""The conformance kit: whether a plugin does what its contract and its own claims say.

    checks           the checks, as functions that raise AssertionError with a diagnosis
    suite            all checks on everything that a plugin brings, as `gradest check` runs them
    pytest_plugin    the same checks as tests of pytest, for `pytest --gradest-plugin my-plugin`

The names of `checks` are in this package too. They are imported at their first use, so that a run of pytest on a machine that has
gradest does not import torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
