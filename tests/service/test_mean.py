"""POST /v1/mean: E[h] and P(h > 0), without a sample."""

import os
import subprocess
import sys

import pytest
import torch

import gradest
from gradest.client import wire
from gradest.contract.neuron import keeps_event
from tests.events import event_of

A = torch.tensor([[0.5, -1.0, 2.0], [0.0, 40.0, -40.0]])


@pytest.mark.parametrize("name", list(gradest.registry.neurons))
def test_it_is_the_neurons_own(http, name):
    neuron = gradest.neuron(name)
    a = A if keeps_event(neuron) else A.new_full(event_of(neuron, 3, 3), 0.5)
    answer = http.post("/v1/mean", json={"neuron": name, "a": a.tolist()}).raise_for_status().json()
    torch.testing.assert_close(torch.tensor(answer["mean"]), neuron.mean(a))
    torch.testing.assert_close(torch.tensor(answer["active_probability"]), neuron.active_probability(a))


def test_in_safetensors(http):
    body = wire.pack({"a": A.double()}, {"request": '{"neuron": "bernoulli"}'})
    types = {"Content-Type": wire.SAFETENSORS, "Accept": wire.SAFETENSORS}
    tensors, _ = wire.unpack(http.post("/v1/mean", content=body, headers=types).raise_for_status().content)
    torch.testing.assert_close(tensors["mean"], A.double().sigmoid(), rtol=1e-14, atol=0)  # torch's is another function


def test_what_it_refuses(start, refused):
    service = start(max_json_elements=5)
    refused(service.post("/v1/mean", json={"neuron": "bernoulli", "a": [0.0] * 6}), 413)
    refused(service.post("/v1/mean", json={"neuron": "bernuolli", "a": [0.0]}), 404)
    refused(service.post("/v1/mean", json={"neuron": "bernoulli", "a": [0.0], "seed": 1}), 422)


_MEASURED = """
import re, torch
from pathlib import Path
from gradest_service.admit import admission, limits
from gradest_service.bodies.schemas import MeanRequest
from gradest_service.run import operations
from gradest_service.settings import Settings

def admitted(rows):
    fields = {"neuron": "binary_concrete", "a": torch.full((rows, 2), 0.5), "dtype": "float64"}
    return admission.admit_mean(MeanRequest.model_validate(fields), settings, False)

def peak(rows):
    operations.mean(admitted(rows), settings)
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) // 1024

settings = Settings()
part = limits.rows_of_mean(settings, admitted(1))
peak(part)
print(peak(part), peak(40 * part))
"""


@pytest.mark.deep
@pytest.mark.skipif(sys.platform != "linux", reason="the peak of memory is read from /proc")
def test_a_mean_of_many_parts_takes_the_memory_of_one():
    """Results that were kept between the parts would split the memory that these freed, and the next would need more."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GRADEST_KERNELS": "reference"}
    ran = subprocess.run(
        [sys.executable, "-c", _MEASURED], env=environment, capture_output=True, text=True, check=True, timeout=120
    )
    one, many = map(int, ran.stdout.split())
    assert many < one + 100, (one, many)
