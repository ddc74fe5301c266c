"""A Ray cluster of this machine, and the service on two replicas of it, as `serve run` starts it."""

import os
import socket
import subprocess
import sys
import time
import warnings

import httpx
import pytest

REPLICA = "SERVE_REPLICA::"


@pytest.fixture(scope="session")
def cluster():
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    # on busy cores a proxy takes longer to start than the five seconds after which it is killed
    os.environ["RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S"] = os.environ["RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S"] = "60"
    import ray

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ray declares options in a way that pydantic no longer likes
        import ray.serve

    # cores in name only: workers and replicas wait for each other more than they compute
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield ray
    ray.shutdown()


@pytest.fixture(scope="session")
def replicas(cluster):
    """Lists the replicas there are, by name."""

    def names():
        actors = cluster.util.list_named_actors(all_namespaces=True)
        return {actor["name"] for actor in actors if actor["name"].startswith(REPLICA)}

    return names


@pytest.fixture(scope="session")
def on_ray(cluster, tmp_path_factory):
    """The URL of `serve run gradest_service.ray:app`, with GRADEST_RAY_REPLICAS=2."""
    from ray import serve

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    log = tmp_path_factory.mktemp("ray") / "serve.log"
    address = cluster.get_runtime_context().gcs_address
    command = [sys.executable, "-m", "ray.serve.scripts", "run", "--address", address, "gradest_service.ray:app"]
    # the first request of each kind waits until its kernels are compiled, by both replicas at a time
    scale = {"GRADEST_RAY_REPLICAS": "2", "GRADEST_RAY_CPUS": "0.5", "GRADEST_SERVICE_DEADLINE_SECONDS": "200"}
    with log.open("wb") as out:
        ran = subprocess.Popen(command, env=os.environ | scale, stdout=out, stderr=subprocess.STDOUT)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(240):
            assert ran.poll() is None, log.read_text()
            try:
                if httpx.get(f"{url}/readyz", timeout=10).status_code == 200:
                    break
            except httpx.TransportError:
                pass
            time.sleep(0.5)
        else:
            pytest.fail(log.read_text())
        yield url
    finally:
        ran.terminate()
        ran.wait(30)
        serve.shutdown()
