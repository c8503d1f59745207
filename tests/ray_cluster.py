"""A Ray cluster on this machine for tests, which other processes find by `RAY_ADDRESS` and enter by its token."""

import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

HOLD = """
import ray
print(ray.init(num_cpus=6, include_dashboard=False, log_to_driver=False).address_info["address"], flush=True)
input()
"""


@contextmanager
def ray_cluster() -> Iterator[tuple[dict[str, str], subprocess.Popen]]:
    """Variables of the environment that lead a process to the cluster, and the process that holds it."""
    own = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": own}
    with subprocess.Popen([sys.executable, "-c", HOLD], **pipes) as holder:
        assert holder.stdin is not None and holder.stdout is not None
        try:
            yield {**own, "RAY_ADDRESS": holder.stdout.readline().strip()}, holder
        finally:
            holder.stdin.write("\n")
            holder.stdin.flush()
