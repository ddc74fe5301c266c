"""The conformance kit: it tests whether a plugin keeps its contract and its own claims.

    checks           the checks, as functions that raise AssertionError with a diagnosis
    suite            all checks on everything that a plugin provides, as `gradest check` runs them
    pytest_plugin    the same checks as pytest tests, for `pytest --gradest-plugin my-plugin`

The public names of `checks` can be imported from this package too. They are loaded at their first use: pytest imports this
package wherever gradest is installed, and projects that have nothing to do with gradest should not wait for torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
