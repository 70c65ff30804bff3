"""Does loopwatch count every request, stay small and fail none, whatever happens during a million requests?

Serves the same load twice, bare and measured, with uvicorn and two workers: 10 % of the requests are cancelled, 5 %
are left by their clients, the folder of PROMETHEUS_MULTIPROC_DIR is lost once, and three times a worker is killed.
Run it as scripts/bench --soak. It exits with 1, and says why, if requests are missing or counted twice, if requests
failed that do not fail bare, or if the worker that lives throughout grew by 1 MB more than a bare one in the second
half.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import os
import pathlib
import resource
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections import Counter
from typing import IO, TYPE_CHECKING

from benchmarks import children
from benchmarks.overhead import check_variants
from benchmarks.plan import LOOPS, Plan
from benchmarks.soak_app import KINDS, ended
from benchmarks.soak_load import IN_FLIGHT, MIX, Load, Outcome
from benchmarks.variants import OURS

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

PARTS, WORKERS = 20, 2
LOST, BACK, KILLED = 5, 7, (10, 13, 16)
"""In which parts of the load the folder is lost, is there again, and a worker is killed."""

LEAST = PARTS * len(MIX)
MOST_GROWTH_KB = 1024
LOST_SECONDS = 5.0 + 1.0
"""What a killed worker counted in that time may be lost: it is written every five seconds, or somewhat later."""

PATIENCE_SECONDS = 60
_COUNT = "loopwatch_request_duration_seconds_count{"


@dataclasses.dataclass
class Soaked:
    """What a soak of one variant has shown."""

    outcome: Outcome = dataclasses.field(default_factory=Outcome)
    ended: Counter[str] = dataclasses.field(default_factory=Counter)
    """Requests that have ended in the app, by kind: the truth."""

    counted: Counter[str] = dataclasses.field(default_factory=Counter)
    """The same as loopwatch counts them; nothing where the app is bare."""

    missing_before_kills: Counter[str] = dataclasses.field(default_factory=Counter)
    """What was not counted just before the first kill: nothing may be, though the folder was lost by then."""

    may_be_lost: Counter[str] = dataclasses.field(default_factory=Counter)
    """Those of killed workers' last seconds."""

    resident_kb: list[int] = dataclasses.field(default_factory=list)
    """Memory of the worker that lives throughout, after each part."""

    pages_failed: int = 0
    log: str = ""

    def grown_kb(self) -> int:
        """Return by how much that worker grew in the second half: in the first, all is done for the first time."""
        return self.resident_kb[-1] - self.resident_kb[PARTS // 2 - 1]


class Service:
    """uvicorn with two workers of one variant, a folder that they share, and the files of their counts."""

    def __init__(self, variant: str, loop: str, folder: pathlib.Path, log: IO[str]) -> None:
        self.shared, self._counts = folder / "shared", folder / "counts"
        for one in (self.shared, self._counts):
            one.mkdir()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self._process = children.start(
            [sys.executable, "-m", "uvicorn", "benchmarks.soak_app:app", "--workers", str(WORKERS), "--loop", loop,
             "--port", str(self.port), "--log-level", "error", "--no-access-log", "--timeout-keep-alive", "600"],
            variant, errors=log,
            extra={"PROMETHEUS_MULTIPROC_DIR": str(self.shared), "SOAK_COUNTS": str(self._counts)},
        )  # fmt: skip
        self._killed: set[int] = set()
        self._history: list[tuple[float, dict[int, Counter[str]]]] = []

    async def workers(self) -> set[int]:
        """Return the workers once all are there, those that were killed replaced."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while len(alive := self._started() - self._killed) < WORKERS or not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise children.BenchmarkError(f"Not all workers started within {PATIENCE_SECONDS} s.")
            await asyncio.sleep(0.05)
        return alive

    def lose_folder(self) -> None:
        """Take the shared folder away, as a cleaner of temporary files does."""
        shutil.rmtree(self.shared.rename(self.shared.with_name("lost")))

    def bring_folder_back(self) -> None:
        """Make the shared folder again."""
        self.shared.mkdir()

    def kill(self, worker: int) -> Counter[str]:
        """Kill a worker; return what it may not have written yet."""
        os.kill(worker, signal.SIGKILL)
        self._killed.add(worker)
        self.note()
        now, all_ended = self._history[-1]
        before = [noted.get(worker, Counter()) for at, noted in self._history if at <= now - LOST_SECONDS]
        return all_ended[worker] - (before[-1] if before else Counter())

    def note(self) -> None:
        """Note what has ended so far: of a killed worker it matters what was in its last seconds."""
        self._history.append((time.monotonic(), {one: self._ended(one) for one in self._started()}))

    def all_ended(self) -> Counter[str]:
        """Return how many requests of each kind have ended, in workers that live or not."""
        return sum((self._ended(one) for one in self._started()), Counter())

    def end(self) -> None:
        """End all processes."""
        children.end(self._process)

    def _started(self) -> set[int]:
        return {int(file.name) for file in self._counts.iterdir() if file.name.isdigit()}

    def _ended(self, worker: int) -> Counter[str]:
        return Counter(ended(self._counts / str(worker)))

    def _answers(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0


def resident_kb(process: int) -> int:
    """Return the memory that a process has in RAM."""
    return int(pathlib.Path(f"/proc/{process}/statm").read_text().split()[1]) * resource.getpagesize() // 1024


async def soak(variant: str, loop: str, total: int) -> Soaked:
    """Serve ``total`` requests of the mix with a variant, with all that happens meanwhile."""
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile("w+") as log:
        service = Service(variant, loop, pathlib.Path(folder), log)
        load = Load(service.port)
        try:
            return await _soak(variant, service, load, total)
        except Exception:
            log.seek(0)
            print(log.read(), file=sys.stderr)
            raise
        finally:
            load.close()
            service.end()


async def _soak(variant: str, service: Service, load: Load, total: int) -> Soaked:
    soaked = Soaked(load.outcome)
    survivor = min(await service.workers())
    noting = asyncio.ensure_future(_note_each_second(service))

    async def kill() -> None:
        (other,) = await service.workers() - {survivor}
        load.kills += 1
        soaked.may_be_lost += service.kill(other)

    async def lose() -> None:
        service.lose_folder()

    async def bring_back() -> None:
        service.bring_folder_back()

    events: dict[int, tuple[str, Callable[[], Awaitable[None]]]] = {
        LOST: (", folder lost", lose),
        BACK: (", folder back", bring_back),
        **dict.fromkeys(KILLED, (", worker killed", kill)),
    }
    served = 0
    try:
        for part in range(1, PARTS + 1):
            due = total * part // PARTS - served
            what, event = events.get(part, ("", None))
            await load.make(due // 2)
            half = asyncio.ensure_future(load.make(due - due // 2))
            await asyncio.sleep(0)
            if event is not None:
                await event()
            await half
            status, _ = await load.get("/metrics")
            soaked.pages_failed += status != 200
            served += due
            soaked.resident_kb.append(resident_kb(survivor))
            print(f"{variant}: {served:>8} requests, {soaked.resident_kb[-1]} KB{what}", flush=True)
            if event is not None:
                await service.workers()  # a worker that was killed is replaced
            if part == min(KILLED) - 1:
                await _settle(service, load, soaked, is_counted=variant in OURS)
                soaked.missing_before_kills = soaked.ended - soaked.counted
    finally:
        noting.cancel()
    await _settle(service, load, soaked, is_counted=variant in OURS)
    return soaked


async def _note_each_second(service: Service) -> None:
    while True:
        service.note()
        await asyncio.sleep(1)


async def _settle(service: Service, load: Load, soaked: Soaked, *, is_counted: bool) -> None:
    """Wait until nothing ends any more and then, where loopwatch counts, until it has counted all or is late."""
    deadline, before = time.monotonic() + PATIENCE_SECONDS, None
    while soaked.ended != before and time.monotonic() < deadline:
        before = soaked.ended
        await asyncio.sleep(1)
        soaked.ended = service.all_ended()
    deadline = time.monotonic() + LOST_SECONDS
    while is_counted and time.monotonic() < deadline:
        _, page = await load.get("/metrics")
        soaked.counted = counted(page)
        if soaked.counted == soaked.ended:
            return
        await asyncio.sleep(0.2)


def counted(page: str) -> Counter[str]:
    """Return the requests of each kind that a page of metrics tells."""
    found: Counter[str] = Counter()
    for line in page.splitlines():
        kind = line.partition('http_route="/')[2].partition("/")[0]
        if line.startswith(_COUNT) and kind in KINDS:
            found[kind] += int(float(line.rpartition(" ")[2]))
    return found


def faults(bare: Soaked, measured: Soaked) -> list[str]:
    """Return a sentence for each promise that was not kept; none if all were."""
    found = []
    for kind in KINDS:
        missing = measured.ended[kind] - measured.counted[kind]
        if missing > measured.may_be_lost[kind]:
            found.append(
                f"Of {measured.ended[kind]} requests to /{kind}, {missing} are not counted. "
                f"Killed workers may lose {measured.may_be_lost[kind]}, those of their last seconds."
            )
        if missing < 0:
            found.append(f"Of {measured.ended[kind]} requests to /{kind}, {-missing} are counted twice.")
    for kind, missing in measured.missing_before_kills.items():
        found.append(f"{missing} requests to /{kind} were not counted before any worker was killed.")
    for reason, number in measured.outcome.failed.items():
        if number > bare.outcome.failed[reason]:
            found.append(f"{number} requests failed ({reason}), and {bare.outcome.failed[reason]} of the bare app.")
    most_cut = IN_FLIGHT * len(KILLED)
    if measured.outcome.cut > most_cut:
        found.append(
            f"{measured.outcome.cut} requests had no answer as workers were killed; at most {most_cut} may."
        )
    if measured.pages_failed:
        found.append(f"{measured.pages_failed} of {PARTS} pages of metrics failed.")
    grown, usual = measured.grown_kb(), max(bare.grown_kb(), 0)
    if grown - usual > MOST_GROWTH_KB:
        found.append(f"A worker grew by {grown} KB in the second half, and a bare one by {usual} KB.")
    return found


def summary(name: str, soaked: Soaked) -> str:
    """Return what has become of the requests of a variant, in one line."""
    outcome, lost = soaked.outcome, sum(soaked.ended.values()) - sum(soaked.counted.values())
    counts = f", {lost} not counted ({soaked.may_be_lost.total()} may be)" if soaked.counted else ""
    return (
        f"{name}: {outcome.sent.total()} sent, {outcome.answered.total()} answered, {outcome.sent['left']} left, "
        f"{outcome.cut} cut by a kill, {outcome.failed.total()} failed; {soaked.ended.total()} have ended{counts}; "
        f"grown by {soaked.grown_kb()} KB in the second half"
    )


async def both(variant: str, loop: str, total: int) -> list[str]:
    """Soak the bare app and then a variant; print what both have shown and return what does not hold."""
    shown = []
    for one in ("bare", variant):
        shown.append(await soak(one, loop, total))
        print(summary(one, shown[-1]), flush=True)
    return faults(*shown)


async def _until_signal(work: Awaitable[list[str]]) -> list[str]:
    """Do the work; cancel it on SIGINT, SIGTERM or SIGHUP, but on those that are ignored, as below nohup."""
    task, came = asyncio.ensure_future(work), list[int]()

    def interrupt(number: int) -> None:
        came.append(number)
        task.cancel()

    for number in children.SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            asyncio.get_running_loop().add_signal_handler(number, interrupt, number)
    try:
        return await task
    except asyncio.CancelledError:
        raise children.Interrupted(came[0]) from None


def main(arguments: list[str] | None = None) -> int:
    """Soak both variants; return the exit code."""
    lines = (__doc__ or "").splitlines()
    parser = argparse.ArgumentParser(
        prog="scripts/bench --soak", description=lines[0], epilog=" ".join(lines[2:]).strip()
    )
    parser.add_argument("--requests", type=int, default=1_000_000, metavar="N", help="how many (1000000)")
    parser.add_argument("--loop", choices=LOOPS, default="asyncio")
    parser.add_argument("--variant", choices=sorted(OURS), default="compiled", help="what to measure (compiled)")
    options = parser.parse_args(arguments)
    if options.requests < LEAST:
        parser.error(f"--requests must be at least {LEAST}, got {options.requests}")
    children.raise_on_signals()
    try:
        check_variants(Plan(("bare", options.variant), rounds=1, loops=(options.loop,)))
        found = asyncio.run(_until_signal(both(options.variant, options.loop, options.requests)))
    except children.Interrupted as interrupted:
        print(f"Interrupted by {interrupted}. The lines above hold what was measured.", file=sys.stderr)
        return interrupted.exit_code
    except children.BenchmarkError as error:
        print(error, file=sys.stderr)
        return 1
    finally:
        children.end_all()
    for sentence in found:
        print(sentence, file=sys.stderr)
    print("Something does not hold." if found else "All holds.")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
