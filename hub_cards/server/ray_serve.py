"""The same application on Ray Serve: replicas that scale with the load, are replaced when they die, update in turn."""

import logging
import os
import signal
from typing import Any

import ray
import torch
from ray import serve

from .app import load_application
from .run import start_logging
from .settings import Settings

log = logging.getLogger("unimedvl.server")

NAME = "unimedvl"
CLUSTER_VARIABLE = "RAY_ADDRESS"


def deployment(settings: Settings, min_replicas: int, max_replicas: int) -> serve.Application:
    """The application as a deployment, each replica with a loaded model of its own.

    Args:
        settings: see `Settings`; limits hold for each replica.
        min_replicas, max_replicas: how many replicas, by the load.
    """

    def build():
        start_logging()
        return load_application(settings)

    class Replica:
        """Ray asks it whether it lives, and replaces it where it does not."""

        def check_health(self) -> None:
            if not self.app.ready():  # type: ignore[attr-defined]  # given by the decorator
                raise RuntimeError("a thread of the server has ended")

    limits = settings.limits
    made = serve.deployment(
        name=NAME,
        # A replica has to get a request beyond its limit to refuse it with 429; Ray's own queue ends as well.
        max_ongoing_requests=2 * limits.requests,
        max_queued_requests=limits.requests,
        autoscaling_config={
            "min_replicas": min_replicas,
            "max_replicas": max_replicas,
            "target_ongoing_requests": limits.text_batch,
        },
        ray_actor_options={"num_cpus": 1, "num_gpus": 1 if torch.cuda.is_available() else 0},
        health_check_period_s=5,
        graceful_shutdown_timeout_s=limits.seconds,
    )
    return made(serve.ingress(build)(Replica)).bind()


def run_on_ray(settings: Settings, host: str, port: int, min_replicas: int, max_replicas: int) -> None:
    """Deploy on the cluster that `RAY_ADDRESS` names, or on this machine until a signal ends it.

    On a cluster the deployment stays when this returns; deploying again replaces its replicas one by one, while the
    others answer.

    Args:
        settings: see `Settings`.
        host, port: where Ray's proxy listens.
        min_replicas, max_replicas: how many replicas, by the load.

    Raises:
        ValueError: for numbers of replicas that contradict each other.
    """
    if not 1 <= min_replicas <= max_replicas:
        raise ValueError(
            f"--ray {min_replicas} --max-replicas {max_replicas}: the first is at least 1, the second no less."
        )
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    on_cluster = CLUSTER_VARIABLE in os.environ
    # A machine with fewer cores than replicas still runs them.
    cores = max(os.cpu_count() or 1, max_replicas + 1)
    local: dict[str, Any] = {} if on_cluster else {"num_cpus": cores, "include_dashboard": False}
    ray.init(log_to_driver=not on_cluster, **local)
    # Ray's own handler ends the process where it stands, and would leave the replicas.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    serve.start(http_options={"host": host, "port": port, "request_timeout_s": settings.limits.seconds + 30})
    start_logging()
    log.info("replicas load the model: http://%s:%d/v1 answers then. %s", host, port, settings.notice)
    serve.run(deployment(settings, min_replicas, max_replicas), name=NAME, route_prefix="/", blocking=not on_cluster)
