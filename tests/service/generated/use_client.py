"""Samples, and estimates a gradient of a loss that stays here, through the client that openapi-python-client makes."""

import json
import sys
from typing import TypeVar, cast

from gradest_client import Client
from gradest_client.api.estimation import backward, compare, estimate, forward, sample
from gradest_client.api.registry import get_neuron, recommend
from gradest_client.models import (
    BackwardRequest,
    CompareRequest,
    EstimateRequest,
    ForwardRequest,
    NamedPlugin,
    ProblemDetails,
    RecommendBringItem,
    SampleRequest,
    State,
)

T = TypeVar("T")

# openapi-python-client sends no Accept of its own, and /v1/compare would then answer a stream of events
client = Client(sys.argv[1], headers={"Accept": "application/json"})
a = [[0.5, -1.0, 2.0], [-0.25, 0.125, 0.0]]


def unwrap(answer: T | ProblemDetails | None) -> T:
    """Return the answer; raise the words of the service if it refused."""
    if answer is None or isinstance(answer, ProblemDetails):
        raise RuntimeError(answer.detail if answer else "no answer")
    return answer


def plugin(name: str, **options: object) -> NamedPlugin:
    """Return a plugin with options."""
    return NamedPlugin.from_dict({"name": name, **options})


drawn = unwrap(sample.sync(client=client, body=SampleRequest(neuron="noisy_rectifier", a=a, samples=3, seed=7)))

steps = []
state: State | None = None
estimator = plugin("reinforce_average", samples=2)
for seed in (1, 2):
    asked = ForwardRequest(neuron="bernoulli", a=a, estimator=estimator, seed=seed, state=state)
    draw = unwrap(forward.sync(client=client, body=asked))
    points = cast(list[list[list[float]]], draw.points)
    loss = [[sum(h) ** 2 for h in batch] for batch in points]
    told = BackwardRequest(
        neuron="bernoulli", a=a, estimator=estimator, seed=draw.seed, state=state, digest=draw.digest, loss=loss
    )
    step = unwrap(backward.sync(client=client, body=told))
    state = State.from_dict(step.state.to_dict())
    steps.append({"points": points, "gradient": step.gradient, "value": step.value, "state": state.to_dict()})

objective = plugin("quadratic", target=0.499)
one = EstimateRequest(neuron="bernoulli", a=a, estimator="rloo", objective=objective, draws=1, seed=3)
estimated = unwrap(estimate.sync(client=client, body=one))
variance = cast(list[list[float | str]], estimated.variance)
both = CompareRequest(neuron="bernoulli", a=a, estimators=["rloo"], objective=objective, draws=10, seed=3)
table = unwrap(compare.sync(client=client, body=both))
neuron = unwrap(get_neuron.sync("bernoulli", client=client))
ranking = unwrap(recommend.sync(client=client, bring=[RecommendBringItem.LOSS, RecommendBringItem.GRAD], evaluations=2))
refused = sample.sync(client=client, body=SampleRequest(neuron="bernoulli", a=a, seed=2**53))
assert isinstance(refused, ProblemDetails)

print(
    json.dumps(
        {
            "sample": drawn.h,
            "steps": steps,
            "variance": [str(float(number)) for row in variance for number in row],  # "NaN" becomes a number
            "rows": [row.estimator for row in table.rows],
            "neuron": neuron.name,
            "ranked": len(ranking.rows),
            "refused": {"seed": refused.detail},
        }
    )
)
