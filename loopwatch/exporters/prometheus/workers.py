"""How do several worker processes answer a scrape as one? Through files, as prometheus_client's own metrics do.

Each worker writes its metrics to files in ``PROMETHEUS_MULTIPROC_DIR``, from where every page has them that is
rendered with a ``MultiProcessCollector``, the app's own included. They are written every few seconds, and whenever
a worker is scraped: it rings at all others, and waits until they have written. A thread answers, so a stuck loop
does not keep its worker's figures back.

prometheus_client maps its files into memory: where the disk is full, the kernel kills who writes there. These files
have the same format, but each is written anew beside the last one and takes its place. So a write that fails is an
error that can be caught, and files that somebody removed are there again after the next.

Relies on the format of those files and ``MultiProcessCollector.merge``: docs/what-it-relies-on.md.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import math
import os
import pathlib
import re
import secrets
import socket
import struct
import time
from collections import defaultdict
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, values
from prometheus_client.mmap_dict import mmap_key
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from loopwatch.failures import logger
from loopwatch.names import described
from loopwatch.readings import HistogramReading
from loopwatch.system import Event, SystemSocket, Thread, allocate_lock, threads_are_greenlets

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

_PID = re.compile(r"_(\d+)\.(?:db|partial)$")
_KINDS = ("counter", "histogram", "gauge_livesum", "gauge_livemax", "gauge_livemin")
_SAY_SECONDS = 60.0
"""How often, at most, it is said that the folder is lost."""

_MOST_NAMED = 100
"""How many files that cannot be read are named in the log."""

_HEAD = struct.Struct("ixxxx")
_LENGTH = struct.Struct("i")
_VALUE_AND_TIME = struct.Struct("dd")


def folder_of_workers() -> pathlib.Path | None:
    """Return the folder that the workers share, ``None`` where each is to tell of itself."""
    if not os.environ.get(FOLDER) or getattr(values, "ValueClass", values.MutexValue) is values.MutexValue:
        return None  # prometheus_client looks when it is imported
    return pathlib.Path(os.environ[FOLDER])


class _FilesOfWorkers(Collector):
    """What all workers have written, as ``MultiProcessCollector`` reads it.

    But for files without a byte, which would fail the whole page: a worker of prometheus_client makes its files
    before it sizes them, and leaves them so if it is killed there
    (https://github.com/prometheus/client_python/issues/1199). So would any other that cannot be read.
    """

    def __init__(self, folder: pathlib.Path) -> None:
        self._folder = folder
        self._named: set[str] = set()

    def collect(self) -> Iterable[Family]:
        """Return the families, summed up over the workers."""
        written = [str(file) for file in self._folder.glob("*.db") if _size(file)]
        try:
            return _merge(written)
        except Exception:
            return _merge([file for file in written if self._is_readable(file)])

    def _is_readable(self, file: str) -> bool:
        try:
            _merge([file])
        except Exception as error:
            if file not in self._named and len(self._named) < _MOST_NAMED:
                self._named.add(file)
                logger.warning(
                    "loopwatch: pages lack what is in %r, as it cannot be read (%s). "
                    "Remove it once its worker has ended.", file, described(error),
                )  # fmt: skip
            return False
        return True


def _merge(files: list[str]) -> Iterable[Family]:
    return MultiProcessCollector.merge(files)  # type: ignore[no-any-return, no-untyped-call] # not typed there


class Workers:
    """Writes what is gathered in this process to the folder, and reads what all have written. No loop's thread."""

    def __init__(self, gathering: Gathering, folder: pathlib.Path) -> None:
        self._gathering, self._folder = gathering, folder
        self._name = f"loopwatch-{hashlib.sha256(os.fsencode(_resolved(folder))).hexdigest()[:16]}"
        self._written = _FilesOfWorkers(folder)
        self._users = 0
        self._writing = allocate_lock()
        self._begin()
        atexit.register(self._write_at_exit)
        # prometheus_client has one lock for all values: a child that is forked while it is held waits for ever.
        free = self._writing.release
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(before=self._writing.acquire, after_in_parent=free, after_in_child=free)

    def _begin(self) -> None:
        self._process = os.getpid()
        # Not by its number alone: a process that ended may have had that, and its counters are to stay.
        self._files = f"loopwatch-{secrets.token_hex(4)}_{self._process}"
        self._keys: dict[tuple[Metric, tuple[str, ...]], list[bytes]] = {}
        self._entries: dict[tuple[Metric, tuple[str, ...]], bytes] = {}
        self._stopping: Event | None = None
        self._is_lost = False
        self._is_over = False
        self._said_at = -math.inf
        self.cpu_seconds = 0.0
        """CPU time of the writing thread so far."""

    def start(self) -> bool:
        """Begin to write; return ``False`` if that was begun already. Any thread."""
        if os.getpid() != self._process:  # a child that was forked: what was written is the parent's
            self._users = 0
            self._begin()
        self._users += 1
        if self._users == 1:
            self._stopping = Event()
            if not threads_are_greenlets():  # else it writes when it is scraped, and at the end
                Thread(self._serve, self._stopping, name="loopwatch-workers")
        return self._users == 1

    def stop(self) -> None:
        """Let the thread write a last time and end, when the last user stops. Any thread."""
        self._users -= 1
        if not self._users and self._stopping is not None:
            self._stopping.set()
            with contextlib.suppress(OSError), contextlib.closing(_datagrams()) as caller:
                caller.setblocking(False)
                caller.sendto(b"", self._address(os.getpid()))

    def registry(self) -> CollectorRegistry | None:
        """Return a registry of what all workers have written, up to now; ``None`` while this one cannot write."""
        self._ring()
        if not self._write_or_say_why():
            return None
        registry = CollectorRegistry()
        registry.register(self._written)
        return registry

    def _write(self) -> None:
        """Write what there is; with the lock.

        Raises:
            OSError: the folder is not there, cannot be written to, or is full.

        """
        files: dict[str, list[bytes]] = defaultdict(list)
        for metric, samples in self._gathering.samples():
            for attributes, value in samples:
                numbers = [*value.counts, value.sum] if isinstance(value, HistogramReading) else [value]
                entry = self._entry(metric, attributes, numbers)
                if metric.kind == "gauge":
                    files[f"gauge_live{metric.together}"].append(entry)
                else:
                    self._entries[metric, attributes] = entry
        for (metric, _), entry in self._entries.items():  # what is not told any more is, all the same, counted
            files[metric.kind].append(entry)
        for kind in _KINDS:
            self._replace(f"{kind}_{self._files}.db", b"".join(files[kind]))
        self._put_away_the_dead()

    def _put_away_the_dead(self) -> None:
        """Remove what workers left that are dead: gauges, and files that were half done."""
        for process in self._processes("gauge_live*_*.db") | self._processes("loopwatch-*_*.partial"):
            if not _is_alive(process):
                with contextlib.suppress(OSError):  # another worker does the same
                    mark_process_dead(process, str(self._folder))  # type: ignore[no-untyped-call] # not typed there
                for left in (f"gauge_live*_loopwatch-*_{process}.db", f"loopwatch-*_{process}.partial"):
                    for file in self._folder.glob(left):
                        with contextlib.suppress(OSError):
                            file.unlink()

    def _entry(self, metric: Metric, attributes: tuple[str, ...], numbers: list[float]) -> bytes:
        keys = self._keys.get((metric, attributes))
        if keys is None:
            keys = self._keys[metric, attributes] = [_padded(key) for key in _keys(metric, attributes)]
        pairs = zip(keys, numbers, strict=True)
        return b"".join([part for key, number in pairs for part in (key, _VALUE_AND_TIME.pack(number, 0.0))])

    def _replace(self, name: str, entries: bytes) -> None:
        """Write a file as a whole: who reads meanwhile has the one before."""
        partial = self._folder / f"{self._files}.partial"
        try:
            partial.write_bytes(_HEAD.pack(_HEAD.size + len(entries)) + entries)
            partial.replace(self._folder / name)
        except OSError:
            with contextlib.suppress(OSError):
                partial.unlink()
            raise

    def _write_at_exit(self) -> None:
        if os.getpid() == self._process and self._entries:
            with self._writing:
                with contextlib.suppress(Exception):  # nobody is left to hear of it
                    self._write()
                # The thread ends with the process: it is not to begin a file that it would leave half done.
                self._is_over = True

    # --- ringing at one another

    def _address(self, process: int) -> str:
        return f"\0{self._name}-{process}"  # of Linux's abstract namespace: no file, gone with the process

    def _bell(self) -> SystemSocket | None:
        bell = None
        try:
            bell = _datagrams()
            bell.bind(self._address(os.getpid()))
        except OSError as error:
            if bell is not None:
                bell.close()
            logger.debug(
                "loopwatch: a scrape of another worker may see this one some seconds late (%s)", described(error)
            )
            return None
        bell.settimeout(WRITE_SECONDS)
        return bell

    def _serve(self, stopping: Event) -> None:
        bell: SystemSocket | None = None
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

    def _write_or_say_why(self) -> bool:
        error: Exception | None = None
        with self._writing:  # so that only one thread sees that this is new
            if self._is_over:
                return False
            was_lost = self._is_lost
            try:
                self._write()
            except Exception as raised:
                error = raised
            self._is_lost = error is not None
        if error is not None and not was_lost:
            self._say(
                "metrics cannot be written to %s %r (%s); pages are of one worker only until they can. "
                "Workers share a folder that is there before they start and that all may write to.", error,
            )  # fmt: skip
        elif was_lost and error is None:
            logger.info("loopwatch: metrics are written to %r again", str(self._folder))
        return error is None

    def _say(self, text: str, error: Exception) -> None:
        now = time.monotonic()
        if now - self._said_at >= _SAY_SECONDS:
            self._said_at = now
            logger.warning(f"loopwatch: {text}", FOLDER, str(self._folder), described(error))

    def _ring(self) -> None:
        """Have all other workers write."""
        with contextlib.suppress(OSError), contextlib.closing(_datagrams()) as caller:
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


def _datagrams() -> SystemSocket:
    """Return a socket by which workers ring at one another.

    Raises:
        OSError: this system has none for processes of one machine.

    """
    family = getattr(socket, "AF_UNIX", None)
    if family is None:
        raise OSError("this system has no sockets of the family AF_UNIX")
    return SystemSocket(family, socket.SOCK_DGRAM)


_WORKERS: dict[pathlib.Path, Workers] = {}


def _resolved(folder: pathlib.Path) -> pathlib.Path:
    """Return the one path of a folder, as far as it can be found out: links may lead in circles."""
    with contextlib.suppress(OSError, RuntimeError):
        return folder.resolve()
    return folder


def workers_of(gathering: Gathering) -> Workers | None:
    """Return the one that writes for this process, ``None`` where it need not."""
    folder = folder_of_workers()
    if folder is None:
        return None
    if folder not in _WORKERS:
        _WORKERS[folder] = Workers(gathering, folder)
    return _WORKERS[folder]


def _keys(metric: Metric, attributes: tuple[str, ...]) -> Iterator[str]:
    """Yield the names of what a series' numbers are: the buckets and the sum of a histogram, or the one value."""
    whole = metric.prometheus_name
    name, labels = whole.removesuffix("_total"), list(metric.labels)
    if metric.kind != "histogram":
        yield mmap_key(name, whole, labels, list(attributes), metric.help)
        return
    for bound in (*metric.buckets, math.inf):
        text = floatToGoString(bound)  # type: ignore[no-untyped-call] # not typed there
        yield mmap_key(name, f"{name}_bucket", [*labels, "le"], [*attributes, text], metric.help)
    yield mmap_key(name, f"{name}_sum", labels, list(attributes), metric.help)


def _padded(key: str) -> bytes:
    """Return a key as the files have it: its length and itself, with spaces up to where a double may begin."""
    encoded = key.encode()
    padded = encoded + b" " * (8 - (len(encoded) + _LENGTH.size) % 8)
    return _LENGTH.pack(len(encoded)) + padded


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
        state = pathlib.Path(f"/proc/{process}/stat").read_text(encoding="latin-1").rpartition(")")[2].split()[0]
        return state != "Z"  # killed, and its parent has not looked yet
    return True
