"""loopwatch: what is your event loop doing, who holds it, and who has to wait?"""

from loopwatch._version import __version__
from loopwatch.asgi import LoopWatchMiddleware, install
from loopwatch.config import Config
from loopwatch.readings import (
    Advice,
    HistogramReading,
    Hold,
    LoopReading,
    PoolReading,
    PoolStall,
    RouteReading,
    Snapshot,
    Stall,
)
from loopwatch.watch import LoopWatch

__all__ = [
    "Advice",
    "Config",
    "HistogramReading",
    "Hold",
    "LoopReading",
    "LoopWatch",
    "LoopWatchMiddleware",
    "PoolReading",
    "PoolStall",
    "RouteReading",
    "Snapshot",
    "Stall",
    "__version__",
    "install",
]
