"""Several replicas of the server by Ray Serve: `python -m serving.cluster --model DIRECTORY --replicas 2`.

Without `--address`, Ray runs in processes of this machine and ends with this one. The door (`relay.py`) is here, the
models are in the replicas; Ray replaces those that die, and adds and removes them between `--replicas` and
`--max-replicas` as requests come.
"""

import argparse
import os
from collections.abc import AsyncGenerator
from contextlib import contextmanager
from typing import Any

import ray
import torch
import uvicorn
from ray import serve
from ray.exceptions import ObjectLostError, RayActorError
from starlette.types import ASGIApp, Message

from ming.serving.asgi import Forwarded, run
from ming.serving.gate import Gate
from ming.serving.metrics import Metrics
from ming.serving.options import Choices, add_options, build_app, read_choices, set_up_logging
from ming.serving.relay import Relay

LOST = (RayActorError, ObjectLostError)
MANY = 10_000  # a replica has its own bounded queue, and answers 429 itself
HEALTH_SECONDS = 5
EXAMPLES = """\
examples:
  python -m serving.cluster --model . --replicas 2
  python -m serving.cluster --model . --device cuda --replicas 1 --max-replicas 8 --address auto
"""


class Replica:
    """The server of one process, as an actor of Ray.

    Args:
        choices: the command line.
    """

    async def __init__(self, choices: Choices):
        set_up_logging(choices.log_level)
        self.app = build_app(choices)
        self._lifespan = self.app.router.lifespan_context(self.app)
        await self._lifespan.__aenter__()

    async def answer(self, request: Forwarded) -> AsyncGenerator[Message, None]:
        """Messages of the answer to a request."""
        async for message in run(self.app, request):
            yield message

    def check_health(self) -> None:
        """Ray replaces a replica that raises here."""
        if not self.app.state.service.engine.is_alive:
            raise RuntimeError("the engine's thread has ended")


def build_parser() -> argparse.ArgumentParser:
    """The options of the server, and those of the cluster."""
    parser = argparse.ArgumentParser(
        prog="python -m serving.cluster",
        description="Serve a model by several processes or machines, through Ray Serve.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_options(parser)
    add = parser.add_argument_group("cluster").add_argument
    add("--replicas", type=int, default=2, metavar="N", help="servers, at least (default: %(default)s)")
    add(
        "--max-replicas", type=int, metavar="N", help="servers, at most; more than --replicas scales with the requests"
    )
    add("--address", help="of a Ray cluster, 'auto' for the one of this machine; default: a Ray of its own, here")
    add(
        "--cpus",
        type=float,
        metavar="N",
        help="cores of a replica; default: this machine's shared out, in a cluster 1",
    )
    add("--gpus", type=float, metavar="N", help="cards of a replica; default: 1 if it works on cards")
    return parser


def deployment_options(arguments: argparse.Namespace, batch: int) -> dict[str, Any]:
    """Options of Ray Serve for the command line's.

    Raises:
        ValueError: numbers of replicas below 1, or a largest number below the least one.
    """
    least, most = arguments.replicas, arguments.max_replicas or arguments.replicas
    if not 1 <= least <= most:
        raise ValueError(f"--replicas {least} --max-replicas {most}: give at least 1, and no more than the maximum")
    cpus, gpus = arguments.cpus, arguments.gpus
    if cpus is None:
        cpus = 1 if arguments.address else max(1, (os.cpu_count() or 1) // most)
    if gpus is None:
        gpus = int((arguments.device or "cuda") != "cpu" and torch.cuda.is_available())
    options: dict[str, Any] = {
        "max_ongoing_requests": MANY,
        "health_check_period_s": HEALTH_SECONDS,
        "ray_actor_options": {"num_cpus": cpus, "num_gpus": gpus},
    }
    if most == least:
        return {**options, "num_replicas": least}
    scale = {"min_replicas": least, "max_replicas": most, "target_ongoing_requests": batch}
    return {**options, "autoscaling_config": scale}


@contextmanager
def deployed(choices: Choices, options: dict[str, Any], address: str | None):
    """Replicas while the block runs; gives the door to them, an ASGI app."""
    if address is None:  # a Ray of our own has room for all of them, whatever the machine has
        most = options.get("num_replicas") or options["autoscaling_config"]["max_replicas"]
        cores = max(os.cpu_count() or 1, most * options["ray_actor_options"]["num_cpus"])
        ray.init(address="local", num_cpus=cores, include_dashboard=False)
    else:
        ray.init(address=address)
    name = f"ming-{choices.site.name}"
    try:
        serve.start(proxy_location="Disabled")  # ours asks again
        deployment = serve.deployment(Replica).options(name="server", **options)
        handle = serve.run(deployment.bind(choices), name=name, route_prefix=None)
        try:
            yield door(handle, choices)
        finally:
            serve.delete(name)
    finally:
        ray.shutdown()


def door(handle, choices: Choices) -> ASGIApp:
    """What clients speak to; `handle` is Ray's, of the replicas."""
    handle = handle.options(stream=True)

    async def ask(request: Forwarded) -> AsyncGenerator[Message, None]:
        answer = handle.answer.remote(request)
        try:
            async for message in answer:
                yield message
        finally:
            answer.cancel()

    relay, limit = Relay(ask, LOST), choices.limits.body_bytes
    return Gate(relay, limit, Metrics(), check_room=lambda: None, api_key=choices.site.api_key)


def main() -> None:
    """Start the replicas and serve until interrupted."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nobody asked us to report
    parser = build_parser()
    arguments = parser.parse_args()
    choices = read_choices(parser, arguments)
    try:
        options = deployment_options(arguments, choices.settings.batch)
    except ValueError as error:
        parser.error(str(error))
    with deployed(choices, options, arguments.address) as app:
        uvicorn.run(app, lifespan="off", ws="none", **choices.uvicorn_options())


if __name__ == "__main__":
    main()
