"""Program of the kill tests: build, check and publish, after saying that it starts.

python worker.py OUT PROCESSES|ray
"""

import sys
from pathlib import Path

from tests.unimed5m.quality.toy_records import ToySource
from unimedvl.unimed5m.build import build
from unimedvl.unimed5m.pipeline import LocalExecutor, RayExecutor
from unimedvl.unimed5m.publish import publish
from unimedvl.unimed5m.quality.control import quality_control


def work(output: Path, executor) -> None:
    # The toy source draws its records: its folder is not read.
    build(ToySource(), Path("/"), output / "built", shards=9, executor=executor)
    quality_control(output / "built", output / "checked", executor=executor)
    publish(output / "checked", output / "published", executor=executor)


if __name__ == "__main__":
    print("started", flush=True)
    work(Path(sys.argv[1]), RayExecutor(2) if sys.argv[2] == "ray" else LocalExecutor(int(sys.argv[2])))
    print("finished", flush=True)
