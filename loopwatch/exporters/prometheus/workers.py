"""How do several worker processes answer a scrape as one? Through files, as prometheus_client's own metrics do.

Each worker writes its metrics to files in ``PROMETHEUS_MULTIPROC_DIR``, from where every page has them that is
rendered with a ``MultiProcessCollector``, the app's own included. They are written every few seconds, and whenever
a worker is scraped: it rings at all others, and waits until they have written. A thread answers, so a stuck loop
does not keep its worker's figures back.

Relies on ``prometheus_client.values.ValueClass`` and ``MultiProcessCollector.merge``: docs/what-it-relies-on.md.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import math
import os
import pathlib
import re
import socket
import threading
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from prometheus_client import CollectorRegistry, values
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from loopwatch.failures import logger
from loopwatch.readings import HistogramReading

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from prometheus_client import Metric as Family

    from loopwatch.catalogue import Metric
    from loopwatch.exporters.prometheus.collector import Gathering

FOLDER = "PROMETHEUS_MULTIPROC_DIR"
WRITE_SECONDS = 5.0
"""How often a worker writes that nobody scrapes: what it counted since is lost if it is killed."""

ANSWER_SECONDS = 0.25
"""How long a scrape waits for the other workers; one that does not answer is told as it last wrote."""

_PID = re.compile(r"_(\d+)\.db$")
_NOTHING = {"sum": 0.0, "max": 0.0, "min": math.inf}
"""What is written of a gauge that is gone, for files forget nothing: it changes nothing of what others have."""


def folder_of_workers() -> pathlib.Path | None:
    """Return the folder that the workers share, ``None`` where each is to tell of itself.

    Raises:
        ValueError: the folder is not there, or cannot be written to.

    """
    if FOLDER not in os.environ or getattr(values, "ValueClass", values.MutexValue) is values.MutexValue:
        return None  # prometheus_client looks when it is imported
    folder = pathlib.Path(os.environ[FOLDER])
    if not os.environ[FOLDER] or not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise ValueError(
            f"{FOLDER} must be a folder that can be written to, got {os.environ[FOLDER]!r}. "
            "Create it, empty, before the workers start, or unset the variable."
        )
    return folder


class _Series(NamedTuple):
    """One metric with one set of labels: where its numbers are written, and those that were written last."""

    metric: Metric
    files: list[Any]
    told: list[float]


class _FilesOfWorkers(Collector):
    """What all workers have written, as ``MultiProcessCollector`` reads it.

    But for files without a byte, which would fail the whole page: a worker makes its files before it sizes them,
    and leaves them so if it is killed there (https://github.com/prometheus/client_python/issues/1199).
    """

    def __init__(self, folder: pathlib.Path) -> None:
        self._folder = folder

    def collect(self) -> Iterable[Family]:
        """Return the families, summed up over the workers."""
        written = [str(file) for file in self._folder.glob("*.db") if _size(file)]
        return MultiProcessCollector.merge(written)  # type: ignore[no-any-return, no-untyped-call] # not typed there


class Workers:
    """Writes what is gathered in this process to the folder, and reads what all have written. No loop's thread."""

    def __init__(self, gathering: Gathering, folder: pathlib.Path) -> None:
        self._gathering, self._folder = gathering, folder
        self._name = f"loopwatch-{hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:16]}"
        self._users = 0
        self._writing = threading.Lock()
        self._begin()
        atexit.register(self._write_at_exit)
        # prometheus_client has one lock for all values: a child that is forked while it is held waits for ever.
        free = self._writing.release
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(before=self._writing.acquire, after_in_parent=free, after_in_child=free)

    def _begin(self) -> None:
        self._process = os.getpid()
        self._series: dict[tuple[Metric, tuple[str, ...]], _Series] = {}
        self._stopping: threading.Event | None = None
        self._failed = False
        self.cpu_seconds = 0.0
        """CPU time of the writing thread so far."""

    def start(self) -> bool:
        """Begin to write; return ``False`` if that was begun already. Any thread."""
        if os.getpid() != self._process:  # a child that was forked: what was written is the parent's
            self._users = 0
            self._begin()
        self._users += 1
        if self._users == 1:
            self._stopping = threading.Event()
            threading.Thread(
                target=self._serve, args=(self._stopping,), name="loopwatch-workers", daemon=True
            ).start()
        return self._users == 1

    def stop(self) -> None:
        """Let the thread write a last time and end, when the last user stops. Any thread."""
        self._users -= 1
        if not self._users and self._stopping is not None:
            self._stopping.set()
            with contextlib.suppress(OSError), _datagrams() as caller:
                caller.setblocking(False)
                caller.sendto(b"", self._address(os.getpid()))

    def registry(self) -> CollectorRegistry:
        """Return a registry of what all workers have written, up to now."""
        self._ring()
        self.write()
        registry = CollectorRegistry()
        registry.register(_FilesOfWorkers(self._folder))
        return registry

    def write(self) -> None:
        """Write what has changed, and put away the gauges of workers that are dead."""
        with self._writing:
            seen = set()
            for metric, samples in self._gathering.samples():
                for attributes, value in samples:
                    seen.add((metric, attributes))
                    numbers = [*value.counts, value.sum] if isinstance(value, HistogramReading) else [value]
                    self._tell(metric, attributes, numbers)
            for key in self._series.keys() - seen:
                if key[0].kind == "gauge":
                    self._tell(*key, [_NOTHING[key[0].together]])
        for process in self._processes("gauge_live*_*.db"):
            if not _is_alive(process):
                with contextlib.suppress(FileNotFoundError):  # another worker does the same
                    mark_process_dead(process, str(self._folder))  # type: ignore[no-untyped-call] # not typed there

    def _tell(self, metric: Metric, attributes: tuple[str, ...], numbers: list[float]) -> None:
        series = self._series.get((metric, attributes))
        if series is None:
            files = list(_files(metric, attributes))
            series = self._series[metric, attributes] = _Series(metric, files, [0.0] * len(files))
        for place, (file, number, before) in enumerate(zip(series.files, numbers, series.told, strict=True)):
            if metric.kind == "gauge":
                file.set(number)
            elif number != before:
                file.inc(number - before)  # what was there may be of a process that had this one's number
                series.told[place] = number

    def _write_at_exit(self) -> None:
        if os.getpid() == self._process and self._series:
            with contextlib.suppress(Exception):  # nobody is left to hear of it
                self.write()

    # --- ringing at one another

    def _address(self, process: int) -> str:
        return f"\0{self._name}-{process}"  # of Linux's abstract namespace: no file, gone with the process

    def _bell(self) -> socket.socket | None:
        bell = None
        try:
            bell = _datagrams()
            bell.bind(self._address(os.getpid()))
        except OSError as error:
            if bell is not None:
                bell.close()
            logger.debug("loopwatch: a scrape of another worker may see this one some seconds late (%s)", error)
            return None
        bell.settimeout(WRITE_SECONDS)
        return bell

    def _serve(self, stopping: threading.Event) -> None:
        bell: socket.socket | None = None
        self._write_or_say_why()  # by its files the others know of this worker
        while not stopping.is_set():
            caller = None
            bell = bell or self._bell()
            if bell is None:
                stopping.wait(WRITE_SECONDS)
            else:
                with contextlib.suppress(TimeoutError):
                    _, caller = bell.recvfrom(1)
            self._write_or_say_why()
            if bell is not None and caller:
                with contextlib.suppress(OSError):  # it waits no longer
                    bell.sendto(b"", caller)
            self.cpu_seconds = time.thread_time()
        if bell is not None:
            bell.close()

    def _write_or_say_why(self) -> None:
        try:
            self.write()
        except Exception:
            if not self._failed:
                self._failed = True
                logger.exception("loopwatch: metrics could not be written to %s", self._folder)

    def _ring(self) -> None:
        """Have all other workers write."""
        with contextlib.suppress(OSError), _datagrams() as caller:
            caller.bind("")  # an address of the system's choice
            caller.setblocking(False)
            waiting = 0
            for process in self._processes("*.db") - {os.getpid()}:
                if _is_alive(process):  # or else a child may have its socket
                    with contextlib.suppress(OSError):  # it is no worker of ours
                        caller.sendto(b"", self._address(process))
                        waiting += 1
            deadline = time.monotonic() + ANSWER_SECONDS
            while waiting and (left := deadline - time.monotonic()) > 0:
                caller.settimeout(left)
                caller.recv(1)
                waiting -= 1

    def _processes(self, pattern: str) -> set[int]:
        found = (_PID.search(file.name) for file in self._folder.glob(pattern))
        return {int(match[1]) for match in found if match}


def _datagrams() -> socket.socket:
    """Return a socket by which workers ring at one another.

    Raises:
        OSError: this system has none for processes of one machine.

    """
    family = getattr(socket, "AF_UNIX", None)
    if family is None:
        raise OSError("this system has no sockets of the family AF_UNIX")
    return socket.socket(family, socket.SOCK_DGRAM)


_WORKERS: dict[pathlib.Path, Workers] = {}


def workers_of(gathering: Gathering) -> Workers | None:
    """Return the one that writes for this process, ``None`` where it need not.

    Raises:
        ValueError: the folder is not there, or cannot be written to.

    """
    folder = folder_of_workers()
    if folder is None:
        return None
    if folder not in _WORKERS:
        _WORKERS[folder] = Workers(gathering, folder)
    return _WORKERS[folder]


def _files(metric: Metric, attributes: tuple[str, ...]) -> Iterator[Any]:
    """Yield what a series' numbers are written to: buckets and sum of a histogram, or the one value."""
    whole = metric.prometheus_name
    name, labels = whole.removesuffix("_total"), metric.labels
    if metric.kind != "histogram":
        yield values.ValueClass(
            metric.kind, name, whole, labels, attributes, metric.help, multiprocess_mode=f"live{metric.together}"
        )
        return
    for bound in (*metric.buckets, math.inf):
        text = floatToGoString(bound)  # type: ignore[no-untyped-call] # not typed there
        by_bound = (*labels, "le"), (*attributes, text)
        yield values.ValueClass("histogram", name, f"{name}_bucket", *by_bound, metric.help)
    yield values.ValueClass("histogram", name, f"{name}_sum", labels, attributes, metric.help)


def _size(file: pathlib.Path) -> int:
    try:
        return file.stat().st_size
    except FileNotFoundError:
        return 0  # the gauges of a dead worker were put away meanwhile


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True  # somebody else's
    with contextlib.suppress(OSError):  # not on Linux, or gone meanwhile
        state = pathlib.Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
        return state != "Z"  # killed, and its parent has not looked yet
    return True
