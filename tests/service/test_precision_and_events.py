"""Losses keep their precision on the way, and event_dims and flatten mean what they mean here: the library's own bits."""

import asyncio
import json

import pytest
import torch

import gradest
from gradest.client.wire import SAFETENSORS, pack
from gradest.errors import InvalidInput
from gradest_service.admit.admission import admit_backward, admit_forward
from gradest_service.bodies.schemas import BackwardRequest, ForwardRequest
from gradest_service.run import joint_pass
from gradest_service.settings import Settings

A = torch.tensor([[0.5, -1.0], [0.2, 0.3], [1.5, -0.4]])
WIDE = torch.linspace(-1, 1.5, 12).reshape(2, 3, 2)


@pytest.fixture(params=["client", "json_client"])
def either(request):
    """The client of each form of bodies."""
    return request.getfixturevalue(request.param)


def far(h, offset=1e9):
    """Losses in float64 whose differences float32 cannot hold."""
    return (h.double() * torch.tensor([1.0, 2.0], dtype=torch.float64)).sum(-1) ** 2 + offset


def step(expect, f, a, *args, **options):
    """The value, the gradient in `a` and the next state."""
    a = a.clone().requires_grad_()
    value, state = expect(f, a, *args, **options)
    value.sum().backward()
    return {"value": value.detach(), "gradient": a.grad, **state}


def assert_same(found, wanted):
    assert found.keys() == wanted.keys()
    for name in wanted:
        assert found[name].dtype == wanted[name].dtype, name
        assert torch.equal(found[name], wanted[name]), name


@pytest.mark.parametrize("estimator", ["rloo", "disarm", "vimco", "reinforce_average", "rebar"])
def test_an_offset_of_the_losses_costs_no_digits(either, estimator):
    wanted = step(gradest.expect, far, A, "bernoulli", estimator, 7)
    assert_same(step(either.expect, far, A, "bernoulli", estimator, 7), wanted)
    if estimator in ("rloo", "disarm"):  # differences of losses, which are small and exact
        near = step(gradest.expect, lambda h: far(h, 0), A, "bernoulli", estimator, 7)
        assert near["gradient"].abs().max() > 0.1
        torch.testing.assert_close(wanted["gradient"], near["gradient"])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.int64, torch.uint8])
def test_backward_is_tell_for_losses_of_every_type(either, dtype):
    draw, state = gradest.ask("bernoulli", "rloo", A, 7)
    remote = either.forward("bernoulli", "rloo", A, seed=7)
    loss = (far(draw.points, 0) * 8).to(dtype)
    wanted, _ = gradest.tell("rloo", draw, gradest.Feedback(loss), state)
    found = either.backward("bernoulli", "rloo", A, remote, loss)
    assert torch.equal(found.gradient, wanted)
    assert found.value.dtype == (torch.float64 if dtype in (torch.float64, torch.int64) else torch.float32)


def test_the_asynchronous_client_keeps_the_precision_too(url):
    async def differentiate():
        async with gradest.AsyncClient(url) as client:
            a = A.clone().requires_grad_()
            value, _ = await client.expect(far, a, seed=7)
            value.sum().backward()
            return {"value": value.detach(), "gradient": a.grad}

    assert_same(asyncio.run(differentiate()), step(gradest.expect, far, A, seed=7))


def test_numbers_in_json_have_double_precision(http):
    body = {"neuron": "bernoulli", "estimator": "rloo", "a": [[0.0]], "seed": 3, "loss": [[1e9 + 0.25], [1e9 + 0.5]]}
    draw, state = gradest.ask("bernoulli", "rloo", torch.zeros(1, 1), 3)
    wanted, _ = gradest.tell("rloo", draw, gradest.Feedback(torch.tensor(body["loss"], dtype=torch.float64)), state)
    found = http.post("/v1/backward", json=body).raise_for_status().json()
    assert found["gradient"] == wanted.tolist()
    assert found["tensors"]["value"]["dtype"] == "float64"
    assert found["value"] == [1e9 + 0.375]
    single = http.post("/v1/backward", json={**body, "loss_dtype": "float32"}).raise_for_status().json()
    assert single["gradient"] == [[0.0]]
    credit = http.post("/v1/credit", json={"estimator": "rloo", "loss": body["loss"]}).raise_for_status().json()
    assert credit["weights"] == [[-0.125], [0.125]]


def test_a_tensor_keeps_its_dtype_without_being_asked_to(http):
    loss = torch.tensor([[1e9 + 0.25], [1e9 + 0.5]], dtype=torch.float64)
    fields = json.dumps({"neuron": "bernoulli", "estimator": "rloo", "seed": 3})
    body = pack({"a": torch.zeros(1, 1), "loss": loss}, {"request": fields})
    answer = http.post("/v1/backward", content=body, headers={"Content-Type": SAFETENSORS}).raise_for_status().json()
    assert answer["value"] == [1e9 + 0.375]


def test_requests_with_other_dtypes_or_events_do_not_change_each_other():
    """They are computed together where they may be, and give the bits that each gives alone."""
    numbers = {"neuron": "bernoulli", "estimator": "rloo", "seed": 3}
    bodies = [
        {**numbers, "a": WIDE.reshape(2, 6)},
        {**numbers, "a": WIDE, "event_dims": 2, "seed": 4},
        {**numbers, "a": WIDE[0], "event_dims": "all", "seed": 5},
    ]
    losses = [torch.tensor([[1.0, 2.0], [0.5, 3.0]]), torch.tensor([[2.0, 2.5], [1.5, 3.0]]), torch.tensor([1.0, 2.0])]
    asked = [admit_forward(ForwardRequest(**body), Settings(), False) for body in bodies]
    told = [
        admit_backward(BackwardRequest(**body, loss=loss), Settings(), False)
        for body, loss in zip(bodies, losses, strict=True)
    ]
    for run, jobs, name in ((joint_pass.forward, asked, "points"), (joint_pass.backward, told, "gradient")):
        assert len({job.kind for job in jobs}) == 1
        together, alone = run(jobs), [run([job])[0] for job in jobs]
        for one, two, body in zip(together, alone, bodies, strict=True):
            assert torch.equal(getattr(one, name), getattr(two, name))
            assert getattr(one, name).shape[-body["a"].ndim :] == body["a"].shape
    double = admit_backward(BackwardRequest(**bodies[0], loss=losses[0].double()), Settings(), False)
    assert double.kind != told[0].kind


def shared(h):
    """One loss for the last two dims of the points."""
    return (h.flatten(-2).sum(-1) - 1.3) ** 2


@pytest.mark.parametrize("estimator", ["rloo", "rebar", "reinforce_centered"])
@pytest.mark.parametrize("event_dims", [2, "all"])
def test_expect_of_events_of_several_dims(either, estimator, event_dims):
    def f(h):
        loss = shared(h)
        return loss.sum(-1) if event_dims == "all" else loss

    given = {"seed": 5, "event_dims": event_dims}
    wanted = step(gradest.expect, f, WIDE, "bernoulli", estimator, **given)
    assert_same(step(either.expect, f, WIDE, "bernoulli", estimator, **given), wanted)


def test_positions_of_one_categorical_unit_each(either):
    def f(h):
        return h.argmax(-1).float()

    wanted = step(gradest.expect, f, WIDE, "categorical", "rloo", seed=5, event_dims=1)
    assert wanted["value"].shape == (2, 3)
    assert_same(step(either.expect, f, WIDE, "categorical", "rloo", seed=5, event_dims=1), wanted)


def test_an_objective_reads_the_events_of_the_neuron(either):
    objective = gradest.objective("quadratic", target=0.3)
    wanted = step(gradest.expect, objective, WIDE, seed=5, event_dims=2)
    assert_same(step(either.expect, objective, WIDE, seed=5, event_dims=2), wanted)


@pytest.mark.parametrize("event_dims", [None, 2])
def test_flatten_hands_f_one_batch_dim(either, event_dims):
    def f(h):
        assert h.shape == (4, 3, 2)  # K·batch, and the rest
        return shared(h) if event_dims else h.square().sum(-1)

    given = {"seed": 5, "flatten": True, "event_dims": event_dims}
    assert_same(step(either.expect, f, WIDE, **given), step(gradest.expect, f, WIDE, **given))


def test_the_losses_of_f_must_have_the_shape_of_the_batch(client):
    with pytest.raises(InvalidInput, match=r"to losses \[2, 2\]"):
        client.expect(lambda h: h.sum(-1), WIDE, event_dims=2)


def test_estimate_and_compare_of_events_of_several_dims(either):
    wanted = gradest.estimate(gradest.objective("quadratic"), WIDE, draws=20, seed=5, event_dims=2)
    exact = gradest.exact(gradest.objective("quadratic"), WIDE, event_dims=2)
    for watch in (None, lambda found: None):
        found = either.estimate("quadratic", WIDE, draws=20, seed=5, event_dims=2, watch=watch)
        for name in ("gradient", "variance", "standard_error", "loss"):
            assert torch.equal(getattr(found, name), getattr(wanted, name)), name
        for one, two in zip(found.exact, exact, strict=True):
            torch.testing.assert_close(one, two)
    table = gradest.compare(gradest.objective("quadratic"), WIDE, estimators=["rloo"], draws=20, seed=5, event_dims=2)
    found = either.compare("quadratic", WIDE, estimators=["rloo"], draws=20, seed=5, event_dims=2)
    assert found.rows[0].variance == table.rows[0].variance
    torch.testing.assert_close(found.exact, table.exact)


@pytest.mark.parametrize("event_dims", [-1, 4, True, 1.5, "some"])
@pytest.mark.parametrize("route", ["forward", "estimate"])
def test_event_dims_that_do_not_fit_are_refused(http, refused, route, event_dims):
    body = {"neuron": "bernoulli", "estimator": "rloo", "a": WIDE.tolist(), "event_dims": event_dims}
    if route == "estimate":
        body["objective"] = "quadratic"
    assert "event_dims" in refused(http.post(f"/v1/{route}", json=body), 422)["detail"]


def test_backward_with_other_events_than_forward_is_refused(http, refused):
    body = {"neuron": "bernoulli", "estimator": "rloo", "a": WIDE.tolist(), "event_dims": 2}
    draw = http.post("/v1/forward", json=body).raise_for_status().json()
    assert draw["event_dims"] == 2
    body |= {"seed": draw["seed"], "digest": draw["digest"], "loss": [[1.0, 2.0], [0.0, 3.0]]}
    assert http.post("/v1/backward", json=body).status_code == 200
    body |= {"event_dims": 1, "loss": [[[1.0] * 3] * 2] * 2}
    assert "forward request: a" in refused(http.post("/v1/backward", json=body), 409)["detail"]
