"""Does detection work on this machine? Blocks real loops for known times and tells what was seen of it."""

from __future__ import annotations

import asyncio
import importlib.util
import platform
import sys
from typing import TYPE_CHECKING, NamedTuple

from loopwatch.catalogue import CAUSE_UNKNOWN
from loopwatch.failures import logger
from loopwatch.hot import describe_core
from loopwatch.probes.causes import Witness
from loopwatch.testing import block_loop, burn_cpu
from loopwatch.watch import LoopWatch

if TYPE_CHECKING:
    from collections.abc import Callable

    from loopwatch.readings import Stall

SECONDS = 0.3
TOLERANCE_SECONDS = 0.05
PAUSE_SECONDS = 0.3
TRIES = 3
"""Try each deed this often until the result is right: a busy machine disturbs one try, a fault disturbs all."""

_DEEDS: tuple[tuple[str, str, Callable[[float], float]], ...] = (
    ("sleep on the loop", "blocking", block_loop),
    ("compute on the loop", "cpu", burn_cpu),
)


class _Finding(NamedTuple):
    deed: str
    expected: str
    took: float
    stall: Stall | None

    @property
    def is_right(self) -> bool:
        if self.stall is None or abs(self.stall.duration - self.took) > TOLERANCE_SECONDS:
            return False
        # A machine that is short of CPU takes it from what computes, and then it says so.
        return self.stall.cause == self.expected or (self.expected == "cpu" and self.stall.cause != "blocking")

    def __str__(self) -> str:
        seen = "not seen"
        if self.stall is not None:
            cause = "a cause that is not known" if self.stall.cause == CAUSE_UNKNOWN else self.stall.cause
            seen = f"seen as {self.stall.duration * 1000:.0f} ms of {cause}"
        return f"  {self.deed} for {self.took * 1000:.0f} ms: {seen}{'' if self.is_right else '  <-- wrong'}"


def main() -> int:
    """Test every kind of loop that is installed; print a report; return the exit code."""
    print(f"loopwatch on Python {platform.python_version()}, {platform.system()} {platform.release()}")
    print(describe_core())
    evidence = Witness().offers()
    offered = (f"{what}: {'yes' if there else 'no'}" for what, there in evidence.items())
    print("evidence for causes: " + ", ".join(offered))
    logger.addFilter(_nothing)  # the stalls are meant, and the report tells of them
    try:
        right = _test_all()
    finally:
        logger.removeFilter(_nothing)
    print("Detection works." if right else "Detection does not work as it should: please report this output.")
    return 0 if right else 1


def _nothing(_record: object) -> bool:
    return False


def _test_all() -> bool:
    right = _test("asyncio", asyncio.new_event_loop)
    if importlib.util.find_spec("uvloop") is None:
        print("uvloop: not installed")
    else:
        import uvloop  # noqa: PLC0415 # only where it is installed

        right = _test("uvloop", uvloop.new_event_loop) and right
    return right


def _test(kind: str, make_loop: Callable[[], asyncio.AbstractEventLoop]) -> bool:
    watch = LoopWatch()
    with asyncio.Runner(loop_factory=make_loop) as runner:
        clock, findings = runner.run(_block(watch))
    print(f"{kind}: {clock} clock")
    for finding in findings:
        print(finding)
    sys.stdout.flush()
    return all(finding.is_right for finding in findings)


async def _block(watch: LoopWatch) -> tuple[str, list[_Finding]]:
    findings = []
    async with watch:
        clock = watch.clock_name
        for deed, expected, do in _DEEDS:
            for _ in range(TRIES):
                finding = await _try(watch, deed, expected, do)
                if finding.is_right:
                    break
            findings.append(finding)
    return clock, findings


async def _try(watch: LoopWatch, deed: str, expected: str, do: Callable[[float], float]) -> _Finding:
    await asyncio.sleep(PAUSE_SECONDS)
    before = len(watch.stalls)
    took = do(SECONDS)
    await asyncio.sleep(PAUSE_SECONDS)
    seen = watch.stalls[before:]
    return _Finding(deed, expected, took, seen[0] if len(seen) == 1 else None)
