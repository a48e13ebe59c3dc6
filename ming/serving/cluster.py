"""Several replicas of the server by Ray Serve.

Without an address, Ray runs in processes of this machine and ends with this one. The proxy (`failover.py`) runs here,
the models run in the replicas; Ray replaces replicas that die, and starts and stops them as requests come.
"""

import os
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import ray
import torch
from ray import serve
from ray.exceptions import ObjectLostError, RayActorError
from starlette.types import ASGIApp, Message

from ming.serving.failover import FailoverProxy
from ming.serving.forwarding import ForwardedRequest, answer
from ming.serving.metrics import Metrics
from ming.serving.middleware import AdmissionMiddleware
from ming.serving.options import ServerOptions, build_app, set_up_logging

REPLICA_LOST = (RayActorError, ObjectLostError)
MAX_ONGOING = 10_000  # requests per replica that Ray lets through; the replica's own queue is bounded and answers 429
HEALTH_SECONDS = 5


class Replica:
    """The server of one process, as an actor of Ray."""

    async def __init__(self, options: ServerOptions):  # type: ignore[misc]  # Ray awaits it
        set_up_logging(options.log_level)
        self.app = build_app(replace(options, site=replace(options.site, repeatable=True)))
        self._lifespan = self.app.router.lifespan_context(self.app)
        await self._lifespan.__aenter__()

    async def answer(self, request: ForwardedRequest) -> AsyncGenerator[Message, None]:
        """Messages of the answer to a request."""
        async for message in answer(self.app, request):
            yield message

    def check_health(self) -> None:
        """Ray replaces a replica that raises here."""
        if not self.app.state.service.engine.is_alive:
            raise RuntimeError("the engine's thread has ended")


@dataclass(frozen=True)
class ClusterOptions:
    """How many replicas there are, and where.

    Args:
        replicas: servers, at least.
        max_replicas: servers, at most; more than `replicas` scales with the requests. None is `replicas`.
        address: of a Ray cluster, "auto" for the one of this machine; None starts one here.
        cpus: cores of a replica; None shares out this machine's, in a cluster 1.
        gpus: GPUs of a replica; None is 1 if it computes on GPUs.

    Raises:
        ValueError: fewer than 1 replica, or a maximum below the minimum.
    """

    replicas: int = 2
    max_replicas: int | None = None
    address: str | None = None
    cpus: float | None = None
    gpus: float | None = None

    def __post_init__(self):
        if not 1 <= self.replicas <= self.most:
            raise ValueError(
                f"--replicas {self.replicas} --max-replicas {self.most}: give at least 1, and no more than the maximum"
            )

    @property
    def most(self) -> int:
        return self.max_replicas or self.replicas

    def deployment(self, device: str | None, batch: int) -> dict[str, Any]:
        """Options of a Ray Serve deployment.

        Args:
            device: name of the device of a replica; None is a GPU if there is one.
            batch: requests that a replica decodes together.
        """
        cpus, gpus = self.cpus, self.gpus
        if cpus is None:
            cpus = 1 if self.address else max(1, (os.cpu_count() or 1) // self.most)
        if gpus is None:
            gpus = int((device or "cuda") != "cpu" and torch.cuda.is_available())
        options: dict[str, Any] = {
            "max_ongoing_requests": MAX_ONGOING,
            "health_check_period_s": HEALTH_SECONDS,
            "ray_actor_options": {"num_cpus": cpus, "num_gpus": gpus},
        }
        if self.most == self.replicas:
            return {**options, "num_replicas": self.replicas}
        scale = {"min_replicas": self.replicas, "max_replicas": self.most, "target_ongoing_requests": batch}
        return {**options, "autoscaling_config": scale}


@contextmanager
def running_cluster(cluster: ClusterOptions, options: ServerOptions) -> Iterator[ASGIApp]:
    """Replicas while the block runs; gives the ASGI app that clients speak to."""
    deployment_options = cluster.deployment(options.loading.device, options.settings.batch)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported without the user's consent
    if cluster.address is None:  # a Ray of our own has room for all replicas, whatever the machine has
        cores = max(os.cpu_count() or 1, cluster.most * deployment_options["ray_actor_options"]["num_cpus"])
        ray.init(address="local", num_cpus=cores, include_dashboard=False)
    else:
        ray.init(address=cluster.address)
    name = f"ming-{options.site.name}"
    try:
        serve.start(proxy_location="Disabled")  # ours repeats requests
        deployment = serve.deployment(Replica).options(name="server", **deployment_options)
        handle = serve.run(deployment.bind(options), name=name, route_prefix=None)
        try:
            yield build_proxy(handle, options)
        finally:
            serve.delete(name)
    finally:
        ray.shutdown()


def build_proxy(handle, options: ServerOptions) -> ASGIApp:
    """The app that clients speak to; `handle` is Ray's, of the replicas."""
    handle = handle.options(stream=True)

    async def ask(request: ForwardedRequest) -> AsyncGenerator[Message, None]:
        messages = handle.answer.remote(request)
        try:
            async for message in messages:
                yield message
        finally:
            messages.cancel()

    proxy = FailoverProxy(ask, REPLICA_LOST)
    return AdmissionMiddleware(proxy, options.limits, Metrics(), check_room=lambda: None, api_key=options.site.api_key)


__all__ = ["ClusterOptions", "Replica", "running_cluster"]
