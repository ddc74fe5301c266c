"""The conformance kit: it tests whether a plugin keeps its contract and its own claims.

    checks           the checks, as functions that raise AssertionError with a diagnosis, which are defined in
      shapes         has every result the shape and the dtype that the contract states?
      purity         does it follow from the arguments alone, which are not written to?
      robustness     does it stay finite at extreme pre-activations and losses?
      laws           do a neuron's samples, probabilities, means and derivatives belong to one distribution?
      gradients      is an estimator's gradient as biased as claimed, and made of the parts that layers use?
      objectives     are losses one number for a point and row, and is a closed form of their mean right?
    suite            all checks on everything that a plugin provides, as `gradest check` runs them
    pytest_plugin    the same checks as pytest tests, for `pytest --gradest-plugin my-plugin`

The public names of `checks` can be imported from this package too. They are loaded at their first use: pytest imports this
package wherever gradest is installed, and projects that have nothing to do with gradest should not wait for torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
