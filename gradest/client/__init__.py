"""Clients: the library's calls, answered by a service elsewhere; a loss can stay on this side.

    with gradest.Client("http://127.0.0.1:8000") as client:
        loss, state = client.expect(my_loss, a, neuron="bernoulli", estimator="rloo")     # my_loss runs here
        loss.sum().backward()                                                             # a.grad holds the estimate

The same seed gives the same bits as the library does here. `AsyncClient` has the same methods, to be awaited.

What a call sends, and what it makes of the answers, is a generator, the same for both clients (`calls`, `differentiable`): it
yields each request and is given the answer to it. An `Exchange` says what travels, and when to try again; a client adds how.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
