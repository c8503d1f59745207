"""Parts of a GPU run whose steps hang, break or end their process, for the tests of its supervision."""

import os
import time

from benchmarks.gpu.run import Bench


def first(bench: Bench) -> None:
    bench.record.measured(f"{bench.record.part}.first", 1.0, "one")


def breaks(bench: Bench) -> None:
    bench.record.measured(f"{bench.record.part}.before", 2.0, "two")
    raise OSError("the step broke\nand said why")


def hangs(bench: Bench) -> None:
    time.sleep(3600)


def dies(bench: Bench) -> None:
    os._exit(7)


def last(bench: Bench) -> None:
    bench.record.measured(f"{bench.record.part}.last", float("nan"), "none")
