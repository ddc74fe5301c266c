"""What schemathesis is told of the service: how safetensors are made, and why a body that fits its schema may be refused."""

import json
import re

import schemathesis
import torch
from hypothesis import strategies as st
from schemathesis.openapi.checks import RejectedPositiveData

import gradest
from gradest.client.wire import SAFETENSORS, pack, unpack

NEURONS = list(gradest.registry.neurons)
ESTIMATORS = list(gradest.registry.estimators)
OBJECTIVES = list(gradest.registry.objectives)
PLUGINS = {"neuron": NEURONS, "estimator": ESTIMATORS, "objective": OBJECTIVES}

# what no JSON Schema of one request can say; each refusal is a 413, a 409 or a 422, or a 404 for a name
_BEYOND_A_SCHEMA = re.compile(
    "must have shape|must be \\[K|is not rectangular|is not a finite number|at most 32 dims"  # of nested arrays
    "|\\[\\d+(, \\d+){3,}\\] is not a number"  # of those of four dims and more, whose numbers the schema leaves open
    "|event dim|at least one unit|more dims than|takes \\[\\*batch"
    "|does not fit|refuses its options|options of .* do not fit"  # of plugins and their options
    "|needs the (loss|grad)|state must hold|has no credit|cannot credit|against each other|features"  # of an estimator
    "|To measure, send both|choose a place on a map"  # of a query
    "|digest is that of another draw|No forward request answers such a digest"  # of two requests
    "|at most|may have|would be|would hold|the limit is|would take too many points"  # of an operator's settings
)


FIELDS = {
    "/v1/sample": {},
    "/v1/mean": {},
    "/v1/forward": {"estimator": "rloo"},
    "/v1/backward": {"estimator": "rloo", "seed": 7, "loss": [0, 1]},
    "/v1/credit": {"estimator": "reinforce"},
    "/v1/estimate": {"estimator": "rloo", "objective": "quadratic", "draws": 2},
    "/v1/compare": {"estimators": ["rloo"], "objective": "quadratic", "draws": 2},
    "/v1/recommend": {"objective": "quadratic", "draws": 2, "evaluations": 2},
}

# the pre-activations; what else a request needs is added once it is known which
a = st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=6)
schemathesis.openapi.media_type(SAFETENSORS, a.map(lambda numbers: pack({"a": torch.tensor(numbers)}, {})))


@schemathesis.hook
def map_body(context, body):
    """A name that nobody would guess is replaced by one that there is, so that most requests get further."""
    if isinstance(body, dict):
        for field, names in PLUGINS.items():
            if isinstance(body.get(field), str) and body[field] not in names:
                body[field] = names[len(body[field]) % len(names)]
    return body


@schemathesis.serializer(SAFETENSORS)
def add_fields(context, body):
    """The fields that this operation's tensors go with; without them the body is refused, as one meant to be wrong should."""
    if not context.case.meta.generation.mode.is_positive:
        return bytes(body)
    tensors, _ = unpack(bytearray(body))
    path = context.case.operation.path
    if path == "/v1/credit":  # the numbers are losses, and there is no neuron
        return pack({"loss": tensors["a"]}, {"request": json.dumps(FIELDS[path])})
    return pack(tensors, {"request": json.dumps({"neuron": "bernoulli", **FIELDS[path]})})


@schemathesis.hook
def map_path_parameters(context, path_parameters):
    """Of the names in a path every other is one that there is."""
    name = (path_parameters or {}).get("name")
    if isinstance(name, str) and len(name) % 2:
        names = PLUGINS[context.operation.path.split("/")[2].removesuffix("s")]
        path_parameters["name"] = names[len(name) % len(names)]
    return path_parameters


@schemathesis.hook
def filter_failure(context, failure, case, response):
    """Whether it is one: not where a well-formed request is refused for what its schema cannot say."""
    if not isinstance(failure, RejectedPositiveData) or response.status_code not in (409, 413, 422):
        return True
    detail = response.json()["detail"]
    return detail.startswith("The request does not fit its schema") or not _BEYOND_A_SCHEMA.search(detail)
