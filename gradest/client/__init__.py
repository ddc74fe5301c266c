"""Clients of the HTTP service. Their methods are the library's functions, computed by the service; the loss can stay local.

    with gradest.Client("http://127.0.0.1:8000") as client:
        loss, state = client.expect(my_loss, a, neuron="bernoulli", estimator="rloo")     # my_loss runs in this process
        loss.sum().backward()                                                             # a.grad holds the estimate

The same seed gives the same bits as the library does locally. `AsyncClient` has the same methods, to be awaited. Only calls that
send or receive tensors import torch.

    endpoints       what each method sends, and what it makes of the response: a generator that yields requests
    differentiable  the method `expect`, a generator too
    transports      which request is sent next, when it is sent again, and when to give up, without any I/O
    responses       the parsing of one response: fields, tensors, a stream of events, errors
    encoding        the bodies of requests and responses: JSON, or safetensors as `wire` has it
    wire            the safetensors format, which the service uses too
    requests        the type of a request, and checks of arguments
    results         records that the library has not
    addresses       the URL of the service, and the proxy and certificates on the way to it
    deadlines       connections that keep to a deadline
    clients         `Client` and `AsyncClient`: the I/O
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
