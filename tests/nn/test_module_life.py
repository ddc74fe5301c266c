"""The life of a layer: options that change, and the state that is cast, moved, saved, loaded, copied, averaged and reset."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

import gradest
from gradest.errors import Incompatible, InvalidInput, InvalidOptions, MissingLoss, UnknownPlugin
from gradest.nn import ConditionalLinear, Expectation, Stochastic, StochasticGraph, broadcast_loss
from tests.selection import deep

UNITS = 5
STATEFUL = {  # every estimator with a state: a layer that takes it
    name: layer
    for name, estimator in gradest.registry.fitting(gradest.neuron("bernoulli")).items()
    if estimator.init(gradest.neuron("bernoulli"), torch.zeros(2, UNITS))
    for layer in [Stochastic if estimator.evaluations(gradest.neuron("bernoulli"), (UNITS,)) == 1 else Expectation]
}
SHAPED_BY_THE_EVENT = {"nvil", "rebar", "reinforce_centered", "relax", "relax_rebar"}
CASTS = ["half", "bfloat16", "double"]


def build(estimator, **options):
    name = estimator if isinstance(estimator, str) else estimator["name"]
    return STATEFUL.get(name, Stochastic)("bernoulli", estimator, **options)


def f(h):
    return (h.sum(-1) - 1.3) ** 2 + 2 * h[..., 0]


def step(layer, seed=0, units=UNITS, dtype=torch.float32):
    """Run one step and return the gradient. Equal layers give equal bits."""
    torch.manual_seed(seed)
    a = torch.linspace(-1, 1, 8 * units, dtype=dtype).reshape(8, units).requires_grad_()
    if isinstance(layer, Expectation):
        layer(f, a).mean().backward()
    else:
        broadcast_loss(layer, f(layer(a))).backward()
    return a.grad


def same_state(one, other):
    assert one.state.keys() == other.state.keys()
    assert all(torch.equal(value, other.state[name]) for name, value in one.state.items())


def test_the_stateful_estimators_are_those_of_the_registry():
    assert {"reinforce_average", "rodeo", "double_cv", "slope_annealed_straight_through"} | SHAPED_BY_THE_EVENT == set(
        STATEFUL
    )


@pytest.mark.parametrize("estimator", STATEFUL)
def test_a_cast_and_a_checkpoint_leave_the_state_as_it_is(estimator):
    layer = build(estimator)
    step(layer)
    for cast in CASTS:
        other = copy.deepcopy(layer)
        getattr(other, cast)()
        same_state(layer, other)
        assert all(value.dtype == other.state[name].dtype for name, value in layer.state.items())
        other.load_state_dict({name: value.to(torch.float64) for name, value in layer.state_dict().items()})
        assert {value.dtype for value in other.state.values()} == {torch.float64}  # the precision that was saved
        other.load_state_dict({name: value.half() for name, value in layer.state_dict().items()})
        assert all(value.dtype == layer.state[name].dtype for name, value in other.state.items())
        dtype = next(iter(getattr(nn.Linear(1, 1), cast)().parameters())).dtype
        assert step(other, dtype=dtype).isfinite().all()


def test_a_counter_counts_on_after_a_cast():
    layer = build("slope_annealed_straight_through").bfloat16()
    for _ in range(300):  # bfloat16 counts to 256
        step(layer, dtype=torch.bfloat16)
    assert layer.state["steps"] == 300


@pytest.mark.parametrize("estimator", STATEFUL)
def test_the_state_has_the_precision_of_the_input_or_more(estimator):
    """A layer in float64 computes what the estimator does without a layer, although it was made in float32."""
    layer, state = build(estimator, event=(UNITS,)), None
    a = torch.linspace(-1, 1, 8 * UNITS, dtype=torch.float64).reshape(8, UNITS)
    for seed in range(2):
        found = step(layer, seed, dtype=torch.float64)
        torch.manual_seed(seed)
        given = a.clone().requires_grad_()
        loss, state = gradest.expect(f, given, "bernoulli", estimator, None, state)
        loss.mean().backward()
        torch.testing.assert_close(found, given.grad, rtol=1e-12, atol=1e-12)
    assert {value.dtype for value in layer.state.values()} == {torch.float64}
    assert step(layer).dtype == torch.float32
    assert {value.dtype for value in layer.state.values()} == {torch.float64}


@pytest.mark.parametrize("estimator", STATEFUL)
def test_buffers_from_the_start(estimator):
    plain, shaped = build(estimator), build(estimator, event=(UNITS,))
    assert bool(plain.state) == (estimator not in SHAPED_BY_THE_EVENT)
    before = [(name, value.shape) for name, value in shaped.named_buffers()]
    assert len(before) > 1
    assert torch.equal(step(plain), step(shaped))
    same_state(plain, shaped)
    assert before == [(name, value.shape) for name, value in shaped.named_buffers()]
    assert plain.state_dict().keys() == shaped.state_dict().keys()


@pytest.mark.parametrize("event", [None, (UNITS,)])
@pytest.mark.parametrize("estimator", STATEFUL)
def test_strict_loading_in_both_directions(estimator, event):
    trained, fresh = build(estimator, event=event), build(estimator, event=event)
    first = copy.deepcopy(fresh.state_dict())
    step(trained)
    saved = io.BytesIO()
    torch.save(trained.state_dict(), saved)
    saved.seek(0)
    loaded = torch.load(saved, weights_only=True)
    for assign in (False, True):
        other = build(estimator, event=event)
        other.load_state_dict(loaded, assign=assign)
        same_state(other, trained)
    assert torch.equal(step(other, 1), step(trained, 1))
    same_state(other, trained)
    trained.load_state_dict(first)  # saved before the first step
    assert torch.equal(step(trained), step(fresh))
    same_state(trained, fresh)


def test_loading_a_part_leaves_the_state():
    model = nn.ModuleList([nn.Linear(2, 2), build("reinforce_centered")])
    step(model[1])
    before = model[1].state
    model.load_state_dict({f"0.{name}": value for name, value in nn.Linear(2, 2).state_dict().items()}, strict=False)
    assert all(value is before[name] for name, value in model[1].state.items())
    other = {"threshold": torch.tensor(0.5), "state_alpha": torch.zeros(())}
    assert build("reinforce").load_state_dict(other, strict=False).unexpected_keys == ["state_alpha"]
    with pytest.raises(RuntimeError, match=r'Missing key.*"state_total"'):
        build("reinforce_average").load_state_dict({"threshold": torch.tensor(0.5)})
    with pytest.raises(RuntimeError, match=r'Unexpected key.*"total"'):  # a key that ends like one of the state
        build("reinforce_average").load_state_dict(
            {**build("reinforce_average").state_dict(), "total": torch.zeros(())}
        )


@pytest.mark.parametrize(
    ("saved", "into", "named"),
    [
        (
            "reinforce_average",
            "reinforce_centered",
            r"total \[\], weight \[\], but reinforce_centered has numerator \[\*\]",
        ),
        ("nvil", {"name": "nvil", "hidden": 3}, r"inner \[8, 6\], outer \[8\], .* and 3 more, but .* inner \[3, \*\]"),
        (
            "nvil",
            "reinforce_average",
            r"inner \[8, 6\].* and 10 more, but reinforce_average has no such state for all events",
        ),
    ],
)
def test_a_state_of_another_estimator_is_not_loaded(saved, into, named):
    layer, other = build(saved), nn.Sequential(build(into))
    step(layer)
    before = copy.deepcopy(other.state_dict())
    with pytest.raises(RuntimeError, match=f"the state of 0 in the state_dict has {named}"):
        other.load_state_dict({f"0.{name}": value for name, value in layer.state_dict().items()})
    assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())


def test_a_stateless_estimator_has_no_keys_of_a_state():
    with pytest.raises(RuntimeError, match=r'Unexpected key.*"state_total", "state_weight"'):
        build("reinforce").load_state_dict(build("reinforce_average").state_dict())


def test_a_state_of_another_event_is_not_loaded():
    layer = build("reinforce_centered")
    step(layer, units=1)
    for strict in (True, False):
        with pytest.raises(
            RuntimeError, match=r"numerator \[1\].* but reinforce_centered has numerator \[5\].* events \[5\]"
        ):
            build("reinforce_centered", event=(UNITS,)).load_state_dict(layer.state_dict(), strict=strict)
    other = build("reinforce_centered")
    other.load_state_dict(layer.state_dict())
    with pytest.raises(
        InvalidInput, match=r"state of this layer has numerator \[1\].* has numerator \[5\].* for events \[5\]"
    ):
        step(other)


@pytest.mark.parametrize("estimator", sorted(SHAPED_BY_THE_EVENT))
def test_a_second_width_is_refused(estimator):
    layer = build(estimator)
    step(layer, units=1)  # a state of one unit would broadcast
    before = layer.state
    for units in (5, 1, 2):
        if units > 1:
            with pytest.raises(
                InvalidInput, match=rf"has .*1.*but {estimator} has .* for events \[{units}\] of bernoulli"
            ):
                step(layer, units=units)
    assert all(value is before[name] for name, value in layer.state.items())
    step(layer, units=1)
    layer.reset_state()
    assert not layer.state
    step(layer, units=2)


def test_positions_beside_classes_are_one_event():
    layer = Stochastic("categorical", "reinforce_centered")
    a = torch.zeros(8, 4, 3, requires_grad=True)
    broadcast_loss(layer, layer(a)[..., 0].sum(-1)).backward()
    for positions in (1, 6):
        with pytest.raises(InvalidInput, match=rf"numerator \[4, 3\].* for events \[{positions}, 3\] of categorical"):
            layer(torch.zeros(8, positions, 3, requires_grad=True))


@pytest.mark.parametrize("estimator", ["reinforce", "reinforce_average", "rloo", "disarm"])
def test_a_layer_with_an_event_takes_no_other(estimator):
    layer = (Expectation if estimator == "disarm" else Stochastic)("bernoulli", estimator, event=[UNITS])
    assert "event=(5,)" in repr(layer)
    for module in (layer, copy.deepcopy(layer).eval()):
        given = (f, torch.zeros(8, 4)) if estimator == "disarm" else (torch.zeros(8, 4),)
        with pytest.raises(InvalidInput, match=r"made for events \[5\] of bernoulli, but its input is \[8, 4\]"):
            module(*given)


@pytest.mark.parametrize("event", [5, "5", (2, 3), (2.5,), (-1,), (True,)])
def test_events_that_are_none(event):
    with pytest.raises(InvalidInput, match="event"):
        Stochastic("bernoulli", "reinforce", event=event)


@pytest.mark.parametrize("use_buffers", [True, False])
@pytest.mark.parametrize("event", [None, (UNITS,)])
@pytest.mark.parametrize("estimator", ["reinforce_average", "reinforce_centered", "nvil"])
def test_an_averaged_model_made_before_the_first_step(estimator, event, use_buffers):
    model = nn.Sequential(Stochastic("bernoulli", estimator, event=event), nn.BatchNorm1d(UNITS))
    averaged, averaged_norm = (
        AveragedModel(model, use_buffers=use_buffers),
        AveragedModel(model[1], use_buffers=use_buffers),
    )
    for seed in range(3):
        step(model, seed)
        averaged.update_parameters(model)
        averaged_norm.update_parameters(model[1])
    for name, value in averaged_norm.module.state_dict().items():
        assert torch.equal(averaged.module[1].state_dict()[name], value)
    model.load_state_dict(averaged.module.state_dict())
    averaged.module.load_state_dict(model.state_dict())
    step(averaged.module)


@pytest.mark.parametrize("event", [None, (UNITS,)])
@pytest.mark.parametrize("estimator", STATEFUL)
def test_a_layer_made_on_the_meta_device(estimator, event):
    with torch.device("meta"):
        layer = build(estimator, threshold=0.25, event=event)
    assert {value.device.type for value in layer.buffers()} == {"meta"}
    layer.to_empty(device="cpu").reset_parameters()
    assert layer.threshold == 0.25
    plain = build(estimator, event=event)
    assert torch.equal(step(layer), step(plain))
    same_state(layer, plain)
    for tensor in layer.to_empty(device="cpu").state_dict().values():
        tensor.fill_(torch.nan)
    layer.reset_parameters()
    assert layer.threshold == 0.25
    assert torch.equal(step(layer), step(build(estimator)))


def loaded(layer):
    layer.load_state_dict(copy.deepcopy(layer.state_dict()))


@pytest.mark.parametrize("change", [Stochastic.reset_state, loaded])
def test_a_sample_from_before_does_not_move_a_state_that_was_reset_or_loaded(change):
    layer = build("reinforce_average")
    step(layer)
    a = torch.zeros(2, UNITS, requires_grad=True)
    h = layer(a)
    change(layer)
    before = layer.state
    broadcast_loss(layer, h.sum(-1) + 100).backward()
    assert all(torch.equal(value, before[name]) for name, value in layer.state.items())
    assert a.grad.abs().sum() > 0
    step(layer)
    assert layer.state["weight"] > before["weight"]


def duplicates(layer):
    return copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))


@pytest.mark.parametrize("estimator", [*STATEFUL, "reinforce", "straight_through", "disarm"])
def test_copies_at_every_moment(estimator):
    layer = Expectation("bernoulli", estimator) if estimator == "disarm" else build(estimator)
    copies = [*duplicates(layer)]
    first = step(layer)
    assert all(torch.equal(first, step(other)) for other in copies)
    copies += duplicates(layer)
    second = step(layer, 1)
    assert all(torch.equal(second, step(other, 1)) for other in copies)
    for other in copies:
        same_state(layer, other)


def test_copies_between_forward_and_backward_and_inside_a_scope():
    layer, a = build("reinforce_centered"), torch.zeros(4, UNITS, requires_grad=True)
    step(layer)
    h = layer(a)
    copies, before = duplicates(layer), layer.state
    broadcast_loss(layer, f(h)).backward()  # that of the original, which alone moves
    for other in copies:
        assert all(torch.equal(value, before[name]) for name, value in other.state.items())
        assert not other.waits_outside()
    assert torch.equal(*(step(other, 1) for other in copies))
    with StochasticGraph(layer) as graph:
        h = layer(a)
        copies = duplicates(layer)
        assert all(other.scope is None for other in copies)
        outputs = [other(a) for other in copies]
        graph.add_cost(f(h))
        graph.surrogate().backward()
    for output in outputs:
        with pytest.raises(MissingLoss):
            output.sum().backward()


# --- options ---


def annealed(temperature, estimator="straight_through_concrete"):
    return Stochastic("bernoulli", {"name": estimator, "temperature": temperature})


def test_new_options_are_those_of_a_layer_made_with_them():
    layer, expectation = annealed(1.0), Expectation("bernoulli", {"name": "relax", "temperature": 0.9, "hidden": 4})
    assert not torch.equal(step(layer), step(annealed(0.5)))
    layer.set_options(temperature=0.5)
    assert torch.equal(step(layer), step(annealed(0.5)))
    assert layer.estimator.label() == "straight_through_concrete(temperature=0.5)"
    expectation.set_options(temperature=0.5)
    assert expectation.estimator.spec() == {"name": "relax", "temperature": 0.5, "hidden": 4}
    for spec in ("reinforce", {"name": "reinforce"}, gradest.estimator("reinforce")):
        layer.estimator = spec
        assert torch.equal(step(layer), step(build("reinforce")))
    layer.neuron = "bipolar"
    assert torch.equal(step(layer), step(Stochastic("bipolar", "reinforce")))
    unit = Stochastic("noisy_sigmoid", "pathwise")
    unit.set_options(std=0.25)
    assert torch.equal(step(unit), step(Stochastic({"name": "noisy_sigmoid", "std": 0.25}, "pathwise")))


@pytest.mark.parametrize("estimator", ["straight_through_concrete", "reinmax"])
def test_a_sample_keeps_the_options_it_was_drawn_with(estimator):
    layer, plain = annealed(1.0, estimator), annealed(1.0, estimator)
    grads = []
    for changes, each in ((True, layer), (False, plain)):
        torch.manual_seed(0)
        a = torch.linspace(-1, 1, 4 * UNITS).reshape(4, UNITS).requires_grad_()
        loss = f(each(a))
        if changes:
            each.set_options(temperature=0.2)
        loss.mean().backward()
        grads.append(a.grad)
    assert torch.equal(*grads)


def test_the_state_is_kept_where_it_has_the_form():
    layer = build("slope_annealed_straight_through")
    step(layer)
    layer.set_options(rate=0.5)
    assert layer.state["steps"] == 1
    nvil = build("nvil")
    step(nvil)
    nvil.set_options(learning_rate=0.5)
    assert nvil.state["weight"] > 0
    nvil.set_options(hidden=3)
    assert not nvil.state
    assert torch.equal(step(nvil), step(build({"name": "nvil", "hidden": 3, "learning_rate": 0.5})))
    nvil.estimator = "reinforce_average"
    assert nvil.state == {"total": 0, "weight": 0}
    assert torch.equal(step(nvil), step(build("reinforce_average")))
    nvil.estimator = "reinforce"
    assert nvil.state == {}
    assert list(nvil.state_dict()) == ["threshold"]


def test_options_that_are_refused_change_nothing():
    layer = annealed(0.5)
    sampler = layer.sampler
    for wrong, error, match in [
        ({"temperature": -1.0}, InvalidOptions, "temperature"),
        ({"slope": 2.0}, InvalidOptions, r"no option slope. Its options are those of .*temperature; bernoulli: none"),
        ({"samples": 2}, Incompatible, "Expectation"),
    ]:
        with pytest.raises(error, match=match):
            layer.set_options(**wrong)
    with pytest.raises(InvalidOptions, match=r"cannot be changed.*layer\.set_options\(temperature=\.\.\.\)"):
        layer.estimator.temperature = 0.5
    with pytest.raises(Incompatible, match="does not fit"):
        layer.neuron = "noisy_rectifier"
    with pytest.raises(UnknownPlugin):
        layer.estimator = "straight_throug"
    with pytest.raises(InvalidOptions, match="not int"):
        layer.estimator = 3
    with StochasticGraph(layer), pytest.raises(InvalidInput, match="before the scope is opened"):
        layer.set_options(temperature=0.25)
    assert layer.sampler is sampler
    assert layer.changes == 0
    shaped = Stochastic("bernoulli", "reinforce", event=(UNITS,))
    with pytest.raises(InvalidInput, match="last 2 dim"):
        shaped.neuron = "categorical"
    assert shaped.neuron.name == "bernoulli"


def test_settings_are_checked_when_they_are_assigned():
    layer = Stochastic("bernoulli", "reinforce")
    with pytest.raises(InvalidInput, match="evaluation must be"):
        layer.evaluation = "median"
    layer.evaluation = "sample"
    with pytest.raises(AttributeError):
        layer.event = (3,)
    with pytest.raises(InvalidInput, match="threshold must be a finite number"):
        Stochastic("bernoulli", "reinforce", threshold=float("nan"))
    linear = ConditionalLinear(4, 6)
    for method in ("dens", 2.0, None):
        with pytest.raises(InvalidOptions, match="method must be"):
            linear.method = method
    with pytest.raises(AttributeError):
        linear.block_size = 4
    linear.method = "dense"
    assert repr(linear).endswith("method=dense)")


class Overlapping(gradest.estimator("straight_through_concrete").__class__):
    """An estimator with an option of the same name as one of the neuron."""

    name = "overlapping"

    def accepts(self, neuron):
        return True


def test_an_option_of_both_is_refused():
    layer = Stochastic("binary_concrete", Overlapping())
    with pytest.raises(
        InvalidOptions, match=r"both have an option temperature; .*estimator\.with_options\(temperature"
    ):
        layer.set_options(temperature=0.5)


# --- compiled ---


def compiled(layer):
    torch.compiler.reset()
    return torch.compile(layer, fullgraph=True, backend="aot_eager")


def step_of(function, layer):
    torch.manual_seed(0)
    a = torch.linspace(-1, 1, 8 * UNITS).reshape(8, UNITS).requires_grad_()
    broadcast_loss(layer, f(function(a))).backward()
    return a.grad


def test_a_compiled_layer_follows_its_options():
    layer = annealed(1.0)
    function = compiled(layer)
    assert torch.equal(step_of(function, layer), step(annealed(1.0)))
    layer.set_options(temperature=0.5)
    with torch._dynamo.config.patch(error_on_recompile=True):
        assert torch.equal(step_of(function, layer), step(annealed(0.5)))
    h = function(torch.zeros(2, UNITS, requires_grad=True))
    layer.set_options(temperature=0.25)
    with pytest.raises(InvalidInput, match="between the forward and the backward pass of a compiled function"):
        h.sum().backward()


def test_a_compiled_layer_in_evaluation_follows_its_options():
    layer = Stochastic({"name": "noisy_rectifier", "distribution": "gaussian"}, "pathwise").eval()
    function, a = compiled(layer), torch.linspace(-1, 1, 5)[None]
    assert torch.equal(function(a), layer(a))
    layer.set_options(std=2.0)
    torch.testing.assert_close(function(a), gradest.neuron("noisy_rectifier", distribution="gaussian", std=2.0).mean(a))


@pytest.mark.parametrize("estimator", ["nvil", *deep("reinforce_average")])
def test_a_compiled_layer_needs_no_first_call(estimator):
    layer = build(estimator, event=(UNITS,))
    assert torch.equal(step_of(compiled(layer), layer), step(build(estimator)))


def test_a_second_width_is_refused_in_a_compiled_layer():
    layer = build("reinforce_centered")
    step(layer, units=1)
    with pytest.raises(InvalidInput, match=r"numerator \[1\].* events \[5\]"):
        step_of(compiled(layer), layer)
