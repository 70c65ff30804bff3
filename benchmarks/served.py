"""The variant that ``BENCH_VARIANT`` names, for uvicorn."""

import os

from benchmarks.variants import build

app = build(os.environ["BENCH_VARIANT"])
