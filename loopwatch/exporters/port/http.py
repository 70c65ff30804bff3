"""How are requests read and answers written? HTTP/1.0 and 1.1, one request on each connection."""

from __future__ import annotations

import io
from email.utils import formatdate
from http import HTTPStatus
from http.client import HTTPException, parse_headers
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import unquote

if TYPE_CHECKING:
    from collections.abc import Iterable
    from http.client import HTTPMessage

MOST_HEAD_BYTES = 16 * 1024
"""How long a request's head may be: the request line and the headers."""


class Request(NamedTuple):
    """The head of a request; a header that is missing is empty."""

    method: str
    path: str
    query: str
    accept: str
    accept_encoding: str


class Answer(NamedTuple):
    """An answer; ``headers`` include the length of the body."""

    status: HTTPStatus
    headers: Iterable[tuple[bytes, bytes]]
    body: bytes


def parse(received: bytes) -> Request | HTTPStatus | None:
    """Return the request, the status that refuses it, or None while the head is incomplete."""
    head = received.lstrip(b"\r\n")  # RFC 9112 allows empty lines before a request
    line, newline, rest = head.partition(b"\n")
    words = line.decode("latin-1").split()
    if newline and (len(words) != 3 or not words[2].startswith("HTTP/1.")):
        return HTTPStatus.BAD_REQUEST
    if b"\n\r\n" not in head and b"\n\n" not in head:
        return HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE if len(received) > MOST_HEAD_BYTES else None
    try:
        headers = parse_headers(io.BytesIO(rest))
    except HTTPException:  # too many of them
        return HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
    path, _, query = words[1].partition("?")
    return Request(words[0], unquote(path), query, _value(headers, "accept"), _value(headers, "accept-encoding"))


def text_answer(status: HTTPStatus, text: str, *headers: tuple[bytes, bytes]) -> Answer:
    """Return an answer whose body is one line of plain text."""
    body = f"{text}\n".encode()
    kind, length = (b"content-type", b"text/plain; charset=utf-8"), (b"content-length", b"%d" % len(body))
    return Answer(status, (kind, length, *headers), body)


def to_bytes(answer: Answer, *, with_body: bool) -> bytes:
    """Return an answer as it is sent; an answer to ``HEAD`` is sent without its body."""
    lines = (
        f"HTTP/1.1 {answer.status.value} {answer.status.phrase}".encode(),
        b"date: " + formatdate(usegmt=True).encode(),
        b"connection: close",
        *(b": ".join(header) for header in answer.headers),
        b"\r\n",
    )
    return b"\r\n".join(lines) + (answer.body if with_body else b"")


def _value(headers: HTTPMessage, name: str) -> str:
    value = ",".join(headers.get_all(name, []))
    return " ".join(value.split())  # a folded header contains line breaks, which an answer must not repeat
