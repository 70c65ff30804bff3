"""Where does one message of a WebSocket session begin and end?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, MutableMapping

    from loopwatch.hot import Request

    Scope = MutableMapping[str, Any]
    Message = MutableMapping[str, Any]
    Receive = Callable[[], Awaitable[Message]]
    Send = Callable[[Message], Awaitable[None]]
    ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]

_SWITCHED, _REFUSED = 101, 403
_STATUSES = range(100, 600)


class WebSocketSession:
    """The ``receive`` and ``send`` of a session. Loop thread, within a step.

    The handshake and each message are accounted, from their receipt to the next receive. While the app waits for
    a message nothing is booked; what other tasks of the session do is background work.
    """

    __slots__ = ("_greeted", "_receive", "_send", "request")

    request: Request

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive = receive
        self._send = send
        self._greeted = False

    async def send(self, message: Message) -> None:
        """Pass a message on; note how the handshake ends."""
        if not self._greeted:
            kind = message.get("type")
            if kind == "websocket.accept":
                self._answer(_SWITCHED)
            elif kind == "websocket.close":
                self._answer(_REFUSED)
            elif kind == "websocket.http.response.start":
                status = message.get("status")
                self._answer(status if isinstance(status, int) and status in _STATUSES else _REFUSED)
        await self._send(message)

    async def receive(self) -> Message:
        """End the message that was handled, wait for the next, and begin it."""
        if self._greeted:
            self.request.end()
            self.request.rest()
        message = await self._receive()
        if self._greeted and message["type"] == "websocket.receive" and not self.request.is_open():
            self.request.open()
        return message

    def _answer(self, status: int) -> None:
        self._greeted = True
        self.request.answer(status)
