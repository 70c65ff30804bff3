"""How does another thread wake one that waits for sockets? Through a pair of sockets that it waits for as well."""

from __future__ import annotations

import contextlib
import socket

_DRAIN_BYTES = 4096


class Waker:
    """Wakes the thread that waits for its descriptor to become readable.

    The sockets are closed when the last reference goes, not earlier. A thread that is about to call :meth:`wake`
    could otherwise write into a file that the app opened meanwhile and that got the same number.

    Raises:
        OSError: no file descriptor is left.

    """

    def __init__(self) -> None:
        self._receiver, self._sender = socket.socketpair()
        self._receiver.setblocking(False)
        self._sender.setblocking(False)

    def __del__(self) -> None:
        """Close the sockets, if they were made."""
        if hasattr(self, "_sender"):
            self.close()

    def close(self) -> None:
        """Close the sockets, where no other thread can use them. Safe to call twice."""
        self._receiver.close()
        self._sender.close()

    def fileno(self) -> int:
        """Return the descriptor to wait for."""
        return self._receiver.fileno()

    def wake(self) -> None:
        """Make the descriptor readable. Any thread; never blocks."""
        with contextlib.suppress(OSError):  # its buffer is full, so the thread will wake
            self._sender.send(b"\0")

    def drain(self) -> None:
        """Make the descriptor unreadable until the next :meth:`wake`. The waiting thread."""
        with contextlib.suppress(BlockingIOError):
            self._receiver.recv(_DRAIN_BYTES)
