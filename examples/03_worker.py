"""No web server at all: a worker that watches its own loop. Run: python examples/03_worker.py"""

import asyncio
import time

import loopwatch


async def main():
    async with loopwatch.LoopWatch() as watch:
        for _ in range(5):
            await asyncio.sleep(0.1)
            time.sleep(0.05)  # the mistake
        loop = watch.snapshot().loop
    assert loop is not None  # it was measured
    print(f"busy {loop.utilization:.0%}, p99 lag {loop.lag.quantile(0.99) * 1000:.0f} ms", end=", ")
    print(f"worst {loop.lag_max * 1000:.0f} ms")


if __name__ == "__main__":
    asyncio.run(main())
