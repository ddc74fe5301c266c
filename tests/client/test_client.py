"""The client gives what the library gives, and the service's errors. tests/service holds its numbers to the library's."""

import asyncio
import dataclasses
import subprocess
import sys

import httpx
import pytest
import torch
from torch.utils.checkpoint import checkpoint

import gradest
from gradest.client import RemoteDraw, RemoteEstimate, RemoteGradient, RemoteMean
from gradest.errors import InvalidInput, ServiceError
from gradest_service.app import running
from tests.client.scripted import KINDS, A, Scripted, of_service

DRAW = RemoteDraw(torch.zeros(2, 1, 2), torch.ones(2), frozenset(["loss"]), seed=1, event_dims=1)


def test_credit_of_a_loss_with_a_graph_and_of_whole_lengths(client):
    loss = (torch.linspace(-1, 2, 8).reshape(4, 2).requires_grad_() * 2).bfloat16()
    lengths = torch.tensor([[300, 1], [5, 1000], [7, 257], [1, 3]])  # bfloat16 has no 257
    weights, state = client.credit("opo", loss, features=lengths)
    wanted, _ = gradest.credit("opo", loss, features=lengths)
    assert torch.equal(weights, wanted)
    assert (weights.dtype, state) == (torch.float32, {})
    with pytest.raises(InvalidInput, match=r"the loss must be a torch tensor or an array of .*, not int64"):
        client.credit("rloo", lengths)
    with pytest.raises(ServiceError, match="cannot credit K = 1 sample"):
        client.credit("rloo", loss[:1])


def test_credit_by_the_asynchronous_client():
    async def both():
        async with gradest.AsyncClient(url) as client:
            return await asyncio.gather(*(client.credit(name, loss) for name in ("rloo", "grpo")))

    loss = torch.tensor([[0.5, 1.0], [2.0, -1.0], [0.0, 0.3]])
    with running() as url:
        found = asyncio.run(both())
    for (weights, _), name in zip(found, ("rloo", "grpo"), strict=True):
        assert torch.equal(weights, gradest.credit(name, loss)[0])


def test_registry(client):
    assert list(client.neurons()) == list(gradest.registry.neurons)
    assert list(client.estimators()) == list(gradest.registry.estimators)
    assert list(client.objectives()) == list(gradest.registry.objectives)
    assert client.neuron("bernoulli") == client.neurons()["bernoulli"]
    assert client.estimator("rloo")["needs"] == ["loss"]
    assert client.objective("quadratic")["name"] == "quadratic"
    assert client.plugins()["plugins"][0]["distribution"] == "gradest"
    assert client.version()["plugin_api"] == gradest.PLUGIN_API


def test_results_are_frozen_and_typed(client):
    draw = client.forward("bernoulli", "rloo", A, seed=3)
    step = client.backward("bernoulli", "rloo", A, draw, draw.points.sum(-1))
    found = client.estimate("quadratic", A, draws=10, seed=3)
    mean = client.mean("bernoulli", A)
    assert (type(draw), type(step), type(found), type(mean)) == (RemoteDraw, RemoteGradient, RemoteEstimate, RemoteMean)
    assert isinstance(found, gradest.Estimate)
    assert isinstance(client.compare("quadratic", A, estimators=["rloo"], draws=10), gradest.Comparison)
    for result in (draw, step, found, mean):
        with pytest.raises(dataclasses.FrozenInstanceError):
            result.seed = 1


@pytest.mark.parametrize(
    "neuron",
    [
        {"name": "noisy_rectifier", "distribution": "gaussian", "std": 2.0},
        gradest.neuron("noisy_rectifier", distribution="gaussian", std=2.0),
    ],
)
def test_options_and_instances_are_sent(client, neuron):
    assert torch.equal(client.sample(neuron, A, 3, seed=1), gradest.sample(neuron, A, 3, seed=1))


def test_an_objective_with_tensors_is_sent_by_its_spec(client):
    options = {"weight": torch.tensor([[0.1, 0.2], [0.3, 0.4]]), "labels": torch.tensor([1])}
    instance = gradest.objective("cross_entropy", **options)
    here = gradest.estimate(instance, A, draws=5, seed=2)
    for objective in (instance, {"name": "cross_entropy", **options}):
        assert torch.equal(client.estimate(objective, A, draws=5, seed=2).gradient, here.gradient)


def test_without_a_seed_torch_s_generator_rules_as_in_the_library(client):
    torch.manual_seed(0)
    here = gradest.sample("noisy_rectifier", A, 4)
    torch.manual_seed(0)
    assert torch.equal(client.sample("noisy_rectifier", A, 4), here)
    assert not torch.equal(client.sample("noisy_rectifier", A, 4), here)


def test_a_loss_that_stays_here_trains(client):
    """Gradient descent with the loss on this side and a stateful estimator on the other."""
    a, state, target = torch.zeros(1, 4), None, torch.tensor([1.0, 0.0, 1.0, 0.0])
    for step in range(60):
        draw = client.forward("bernoulli", "reinforce_centered", a, seed=step, state=state)
        loss = ((draw.points - target) ** 2).sum(-1)
        told = client.backward("bernoulli", "reinforce_centered", a, draw, loss, state=state)
        a, state = a - told.gradient, told.state
    assert torch.equal((a > 0).float(), target[None])


@pytest.mark.parametrize("estimator", ["rloo", "straight_through"])
def test_a_second_derivative_that_samples_do_not_give_raises(client, estimator):
    a, weight = A.clone().requires_grad_(), torch.tensor(2.0, requires_grad=True)
    value, _ = client.expect(lambda h: (weight * h).sum(-1) ** 2, a, "bernoulli", estimator, 3)
    of_a, of_weight = torch.autograd.grad(value.sum(), (a, weight), create_graph=True)
    for first, second in ((of_a, a), (of_a, weight), (of_weight, a)):
        with pytest.raises(RuntimeError, match="cannot be differentiated a second time"):
            torch.autograd.grad(first.sum(), second, retain_graph=True)


def test_not_a_number_and_infinity_come_back(client):
    assert client.estimate("linear", A, draws=1, seed=0).variance.isnan().all()
    (row,) = client.compare("linear", A, estimators=["enumeration"], draws=5, seed=0).rows
    assert (row.snr, row.efficiency) == (torch.inf, torch.inf)


def test_requires_grad_and_strides_do_not_matter(client):
    a = torch.linspace(-1, 1, 6).reshape(2, 3).T.requires_grad_()
    assert torch.equal(client.sample("bernoulli", a, 2, seed=1), gradest.sample("bernoulli", a.detach(), 2, seed=1))


@pytest.mark.parametrize("seed", [-1, 2**53, 1.0, True])
def test_a_bad_seed_is_refused_here(client, seed):
    with pytest.raises(InvalidInput, match="seed"):
        client.sample("bernoulli", A, seed=seed)


@pytest.mark.parametrize(
    ("call", "status", "match"),
    [
        (lambda client: client.sample("bernouli", A), 404, "bernoulli"),
        (lambda client: client.neuron("../version"), 404, "route|neuron"),
        (lambda client: client.sample("bernoulli", A, samples=-1), 422, "samples"),
        (lambda client: client.sample("bernoulli", A, samples=10**9), 413, "samples"),
        (lambda client: client.sample("bernoulli", torch.tensor([0.0, torch.nan])), 422, r"a\[1\]"),
        (lambda client: client.forward("noisy_rectifier", "rloo", A), 422, "pathwise"),
        (lambda client: client.backward("bernoulli", "rloo", A, DRAW, torch.zeros(3, 1)), 422, r"\[2, 1\]"),
        (lambda client: client.backward("bernoulli", "rloo", A, DRAW, None), 422, "needs the loss"),
        (lambda client: client.estimate({"name": "quadratic", "target": "x"}, A), 422, "target"),
        (lambda client: client.compare("quadratic", A, estimators=["nothing"]), 404, "estimator"),
    ],
)
def test_errors_of_the_service(client, call, status, match):
    with pytest.raises(ServiceError, match=match) as caught:
        call(client)
    assert caught.value.status == status
    assert caught.value.title
    assert len(caught.value.request_id) == 32


def test_no_service_there():
    with running() as url:
        pass
    with (
        gradest.Client(url, start_timeout=0) as client,
        pytest.raises(ServiceError, match="Is the service running") as caught,
    ):
        client.neurons()
    assert caught.value.status == 0


def test_importing_gradest_imports_neither_torch_nor_httpx():
    code = "import gradest, sys; assert not {'torch', 'httpx'} & set(sys.modules); gradest.Client; assert 'httpx' in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_a_loss_raises_is_no_matter_of_the_service(client):
    """Though it may be an error of a connection, of its own."""

    def loss(points):
        raise httpx.ConnectError("mine")

    service = Scripted(gradest.Client)
    service.script = [lambda: of_service(client, service)]
    with pytest.raises(httpx.ConnectError, match="mine"):
        service.expect(loss, A)
    assert len(service.requests) == 1


def test_importing_and_listing_need_no_torch(client):
    """torch takes seconds, and a client that only asks what there is has no use for it."""
    script = f"""
import sys
import gradest.cli
from gradest.client import AsyncClient, Client, RemoteDraw, RemoteEstimate
with Client({client.url!r}) as client:
    client.neurons(), client.estimator("rloo"), client.recommend(evaluations=4).to_markdown(), client.version()
sys.argv = ["gradest", "list", "--url", {client.url!r}]
try:
    gradest.cli.main()
finally:
    print({{"torch", "numba"}} & set(sys.modules))
"""
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert "bernoulli" in ran.stdout
    assert ran.stdout.endswith("set()\n")


@pytest.mark.parametrize("kind", KINDS)
def test_recommend_is_the_library_s(client, kind):
    service = Scripted(kind)

    def answer():
        sent = service.requests[-1]
        headers = {name: sent.headers[name] for name in ("accept", "content-type") if name in sent.headers}
        url = f"{client.url}/v1/recommend"
        found = httpx.request(
            sent.method, url, params=sent.url.params, content=sent.read(), headers=headers, timeout=60
        )
        return httpx.Response(found.status_code, content=found.content, headers={"Content-Type": "application/json"})

    service.script = [answer]
    case = {"neuron": gradest.neuron("bernoulli"), "bring": ["loss", "grad"], "evaluations": 4, "unbiased": True}
    for more in ({}, {"units": 3, "saturated": True, "neuron": {"name": "categorical"}, "evaluations": None}):
        assert service.recommend(**{**case, **more}) == gradest.recommend(**{**case, **more})
    measured = {"a": torch.tensor([[0.3, -1e-8]]), "draws": 20, "seed": 7, "bring": ["grad"], "evaluations": 4}
    loss = {"name": "polynomial", "power": 3.0, "target": 0.1}
    wanted = gradest.recommend(f=gradest.objective(loss), **measured)
    for sent in (loss, gradest.objective(loss)):
        assert service.recommend(objective=sent, **measured) == wanted
    with pytest.raises(InvalidInput, match="float32"):
        service.recommend(objective="quadratic", a=A.double())
    with pytest.raises(ServiceError, match="bring"):
        client.recommend(bring="loss")


def test_async_calls_run_side_by_side_and_are_the_library_s(client):
    async def main():
        async with gradest.AsyncClient(client.url) as remote:
            drawn = remote.forward("bernoulli", "disarm", A, seed=3)
            samples = [remote.sample("noisy_rectifier", A, 3, seed=seed) for seed in range(20)]
            a = A.clone().requires_grad_()
            value = remote.expect(lambda h: (h**2).sum(-1), a, estimator="disarm", seed=3)
            table = remote.compare("quadratic", A, estimators=["rloo"], draws=10, seed=1)
            mean = remote.mean("noisy_rectifier", A)
            estimated = remote.estimate("linear", A, draws=5, seed=1)
            found = await asyncio.gather(drawn, value, estimated, table, mean, *samples)
            found[1][0].sum().backward()
            return a.grad, *found

    grad, draw, (value, state), estimate, table, mean, *samples = asyncio.run(main())
    assert torch.equal(mean.mean, gradest.neuron("noisy_rectifier").mean(A))
    a = A.clone().requires_grad_()
    wanted, _ = gradest.expect(lambda h: (h**2).sum(-1), a, estimator="disarm", seed=3)
    wanted.sum().backward()
    assert torch.equal(value, wanted)
    assert torch.equal(grad, a.grad)
    assert state == {}
    assert draw.points.shape == (2, 1, 2)
    assert torch.equal(estimate.gradient, gradest.estimate(gradest.objective("linear"), A, draws=5, seed=1).gradient)
    assert [row.estimator for row in table.rows] == ["rloo"]
    for seed, h in enumerate(samples):
        assert torch.equal(h, gradest.sample("noisy_rectifier", A, 3, seed=seed))


def test_connections_are_kept(client):
    for seed in range(5):
        client.sample("bernoulli", A, seed=seed)
    assert len(client._connected()._transport._pool.connections) == 1


@pytest.mark.parametrize(
    ("f", "match"),
    [(lambda h: h.sum(), "to losses"), (lambda h: 1.0, "float"), (lambda h: h.sum(-1).repeat(2, 1), "losses")],
)
def test_a_loss_of_another_shape_is_refused_here(client, f, match):
    with pytest.raises((InvalidInput, ServiceError), match=match):
        client.expect(f, A, seed=1)


def test_a_checkpoint_has_the_gradient_of_no_checkpoint(client):
    """The state that the caller keeps has moved when the checkpoint runs the call again; the gradient was 0."""
    a, state = torch.tensor([[0.3, -1.0, 2.0]], requires_grad=True), None

    def f(h):
        return h.sum(-1).sub(0.7).square() + 2

    def step(a):
        nonlocal state
        value, state = client.expect(f, a * 1, estimator="reinforce_average", seed=3, state=state)
        return value

    checkpoint(step, a, use_reentrant=False).sum().backward()
    found, moved = a.grad, dict(state)
    a.grad = None
    value, right = gradest.expect(f, a, estimator="reinforce_average", seed=3)
    value.sum().backward()
    torch.testing.assert_close(found, a.grad)
    for name, x in right.items():
        torch.testing.assert_close(moved[name], x)


def test_the_seed_of_f_s_points_is_refused_in_f(client):
    a = torch.zeros(1, 2)

    def nested(seed):
        return client.expect(lambda h: client.expect(lambda g: g.sum(-1), h, seed=seed)[0], a, seed=5)

    with pytest.raises(InvalidInput, match="f draws from the seed 5"):
        nested(5)
    nested(6)
