"""Program of the kill tests: check and publish, after saying that it starts.

python worker.py RECORDS OUT PROCESSES
"""

import sys

from unimedvl.processing.unimed5m.pipeline import LocalExecutor, RayExecutor
from unimedvl.processing.unimed5m.publish import publish
from unimedvl.processing.unimed5m.quality.control import quality_control


def work(records: str, output: str, executor) -> None:
    quality_control(records, f"{output}/checked", executor=executor)
    publish(f"{output}/checked", f"{output}/published", executor=executor)


if __name__ == "__main__":
    print("started", flush=True)
    kind = sys.argv[3]
    work(sys.argv[1], sys.argv[2], RayExecutor(2) if kind == "ray" else LocalExecutor(int(kind)))
    print("finished", flush=True)
