"""Whatever is done to pools, in whatever order, their figures are those of a model that does the same by hand."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import anyio
import anyio.to_thread
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from loopwatch import Config, LoopWatch

EXAMPLES = int(os.environ.get("POOL_EXAMPLES", "15"))
PATIENCE_SECONDS = 10
SLACK_SECONDS = 0.005

POOLS = st.sampled_from(["limiter", "executor"])
OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("submit"), POOLS, st.booleans()),
        st.tuples(st.just("submit"), POOLS, st.booleans()),
        st.tuples(st.just("finish"), POOLS, st.integers(0, 9)),
        st.tuples(st.just("cancel"), POOLS, st.integers(0, 9)),
        st.tuples(st.just("cancel_scope"), st.just("limiter"), st.integers(0, 9)),
        st.tuples(st.just("resize"), st.just("limiter"), st.integers(0, 4)),
    ),
    min_size=4,
    max_size=20,
)


class Item:
    """A piece of work that runs until it is told to finish, and then raises if it is odd."""

    def __init__(self, *, odd):
        self.odd = odd
        self.began, self.may_end = threading.Event(), threading.Event()
        self.scope = anyio.CancelScope()
        self.task = None

    def work(self):
        self.began.set()
        self.may_end.wait(PATIENCE_SECONDS)
        if self.odd:
            raise ZeroDivisionError


class Model:
    """What a pool should tell: places go to the first in line."""

    def __init__(self, limit, *, abandoning):
        self.limit, self.abandoning = limit, abandoning
        self.running, self.line, self.everything = [], [], []
        self.least = self.most = 0.0

    @property
    def full(self):
        """Nothing is known of a pool before its first use."""
        return bool(self.everything) and len(self.running) + len(self.line) >= self.limit

    def submit(self, item):
        self.everything.append(item)
        self.line.append(item)
        self.move_up()

    def move_up(self):
        while self.line and len(self.running) < self.limit:
            self.running.append(self.line.pop(0))

    def pick(self, number):
        """Return one of those that run or wait, in a list; none where there is none."""
        items = [*self.running, *self.line]
        return [items[number % len(items)]] if items else []

    def leave(self, item):
        for items in (self.running, self.line):
            if item in items:
                items.remove(item)
        self.move_up()

    def expected(self):
        return (self.limit, len(self.running), len(self.line), len(self.everything) - len(self.running + self.line))


class Play:
    """Does everything twice: to real pools under a watch, and to the models."""

    def __init__(self, watch):
        self.watch = watch
        self.limiter, self.executor = anyio.CapacityLimiter(2), ThreadPoolExecutor(2)
        watch.name_pool(self.limiter, "limiter")
        watch.name_pool(self.executor, "executor")
        self.models = {"limiter": Model(2, abandoning=True), "executor": Model(2, abandoning=False)}
        self.stable_since = time.perf_counter()

    async def submit(self, pool, odd):
        item = Item(odd=odd)
        item.task = asyncio.create_task(self.in_limiter(item) if pool == "limiter" else self.in_executor(item))
        self.models[pool].submit(item)

    async def in_limiter(self, item):
        with item.scope:
            await anyio.to_thread.run_sync(item.work, abandon_on_cancel=item.odd, limiter=self.limiter)

    async def in_executor(self, item):
        await asyncio.get_running_loop().run_in_executor(self.executor, item.work)

    async def finish(self, pool, number):
        model = self.models[pool]
        if model.running:
            item = model.running[number % len(model.running)]
            item.may_end.set()
            model.leave(item)

    async def cancel(self, pool, number):
        """Cancel a task: that abandons what runs in a limiter, while an executor's thread is not let go of."""
        model = self.models[pool]
        for item in model.pick(number):
            item.task.cancel()
            if model.abandoning or item in model.line:
                model.leave(item)

    async def cancel_scope(self, pool, number):
        """Cancel a scope of anyio's: only work that allows it is abandoned."""
        model = self.models[pool]
        for item in model.pick(number):
            item.scope.cancel()
            if item.odd or item in model.line:
                model.leave(item)

    async def resize(self, pool, limit):
        self.limiter.total_tokens = self.models[pool].limit = limit
        self.models[pool].move_up()

    async def do(self, operation, pool, argument):
        now = time.perf_counter()
        full = {name: model.full for name, model in self.models.items()}
        for name, model in self.models.items():
            model.least += full[name] * (now - self.stable_since)
            model.most += full[name] * (now - self.stable_since)
        await getattr(self, operation)(pool, argument)
        await self.agree()
        self.stable_since = time.perf_counter()
        for name, model in self.models.items():
            model.least += (full[name] and model.full) * (self.stable_since - now)
            model.most += (full[name] or model.full) * (self.stable_since - now)

    async def agree(self):
        """Wait until the watch tells what the models do; fail if it does not."""
        for name, model in self.models.items():
            if model.everything:
                await self.agree_on(name, model)

    async def agree_on(self, name, model):
        def said():
            return name, self.told(name), model.expected()

        await until(lambda: self.told(name) == model.expected(), said)
        await until(lambda: all(item.began.is_set() for item in model.running), said)

    def told(self, name):
        pool = self.watch.snapshot().pool(name)
        return pool and (pool.limit, pool.in_use, pool.queued, pool.queue_times.count)

    async def end(self):
        """Shut the executor down with work queued, and let everything else run out."""
        self.executor.shutdown(wait=False, cancel_futures=True)
        self.limiter.total_tokens = self.models["limiter"].limit = 100
        self.models["executor"].line.clear()
        for model in self.models.values():
            model.move_up()
            for item in model.everything:
                item.may_end.set()
            await asyncio.gather(*(item.task for item in model.everything), return_exceptions=True)
            model.running.clear()
        await self.agree()


async def until(holds, what):
    deadline = time.perf_counter() + PATIENCE_SECONDS
    while not holds():
        assert time.perf_counter() < deadline, what()
        await asyncio.sleep(0.001)


async def play(operations):
    async with LoopWatch(Config(metrics_path=None)) as watch:
        one = Play(watch)
        try:
            for operation in operations:
                await one.do(*operation)
            saturated = {name: watch.snapshot().pool(name) for name in one.models}
        finally:
            await one.end()
        for name, model in one.models.items():
            if model.everything:
                assert model.least - SLACK_SECONDS <= saturated[name].saturated <= model.most + SLACK_SECONDS
                await all_that_ran_is_counted(watch, name, model)


async def all_that_ran_is_counted(watch, name, model):
    ran = sum(item.began.is_set() for item in model.everything)
    await until(
        lambda: watch.snapshot().pool(name).run_times.count == ran,
        lambda: (ran, watch.snapshot().pool(name)),
    )


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    derandomize="POOL_EXAMPLES" not in os.environ,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(first=OPERATIONS, second=OPERATIONS)
def test_pools_agree_with_a_model_on_two_loops_at_once(run, first, second):
    failures = []

    def in_a_thread():
        try:
            run(lambda: play(second))
        except BaseException as error:
            failures.append(error)

    other = threading.Thread(target=in_a_thread)
    other.start()
    try:
        run(lambda: play(first))
    finally:
        other.join()
    if failures:
        raise failures[0]


pytestmark = pytest.mark.blocks  # a snapshot after each operation, and shutting executors down
