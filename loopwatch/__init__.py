"""loopwatch: what is your event loop doing, who holds it, and who has to wait?"""

from loopwatch.asgi import LoopWatchMiddleware, install
from loopwatch.config import Config
from loopwatch.readings import (
    Advice,
    HistogramReading,
    LoopReading,
    PoolReading,
    PoolStall,
    RouteReading,
    Snapshot,
    Stall,
)
from loopwatch.watch import LoopWatch

__version__ = "0.1.0"

__all__ = [
    "Advice",
    "Config",
    "HistogramReading",
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
