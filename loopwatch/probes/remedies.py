"""What should be used instead of the call that was caught? Names in, one sentence out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loopwatch.catalogue import CAUSE_CPU, CAUSE_GC, CAUSE_GIL, CAUSE_STARVED

if TYPE_CHECKING:
    from collections.abc import Iterable

_THREAD = "or declare the route with `def`"
_PROCESS = "run it in a process pool: `loop.run_in_executor(ProcessPoolExecutor(), ...)`"

_INSTEAD: tuple[tuple[tuple[str, ...], str], ...] = (
    (("time.sleep",), "use `await asyncio.sleep(...)`"),
    (("requests", "urllib3", "urllib.request", "http.client"), f"use `httpx.AsyncClient`, {_THREAD}"),
    (("httpx.Client", "httpx._client.Client", "httpx._api", "httpx.get", "httpx.post", "httpx.put", "httpx.delete",
      "httpx.request", "httpx.stream"), f"use `httpx.AsyncClient`, {_THREAD}"),
    (("sqlalchemy",), f"use SQLAlchemy's `create_async_engine` with an async driver, {_THREAD}"),
    (("django.db",), "use Django's async queries (`aget`, `acreate`, `async for`), or `sync_to_async`"),
    (("psycopg2", "psycopg.Connection", "psycopg.connection", "psycopg.cursor"),
     f"use `asyncpg`, or `psycopg.AsyncConnection`, {_THREAD}"),
    (("pymysql", "MySQLdb", "mysql.connector"), f"use `asyncmy` or `aiomysql`, {_THREAD}"),
    (("sqlite3", "_sqlite3"), f"use `aiosqlite`, {_THREAD}"),
    (("redis.client", "redis.connection", "redis.Redis", "redis.commands"), "use `redis.asyncio`"),
    (("pymongo",), "use `pymongo.AsyncMongoClient`"),
    (("boto3", "botocore"), f"use `aioboto3`, {_THREAD}"),
    (("smtplib",), f"use `aiosmtplib`, {_THREAD}"),
    (("paramiko",), f"use `asyncssh`, {_THREAD}"),
    (("grpc._channel",), "use `grpc.aio`"),
    (("subprocess", "os.system", "os.popen", "os.waitpid"), "use `await asyncio.create_subprocess_exec(...)`"),
    (("socket.getaddrinfo", "socket.gethostbyname"), "use `await loop.getaddrinfo(...)`"),
    (("socket", "_socket", "ssl"), "use asyncio streams: `await asyncio.open_connection(...)`"),
    (("queue",), "use `asyncio.Queue`, or `await asyncio.to_thread(queue.get)`"),
    (("threading", "_thread"), "use `asyncio.Lock`, `asyncio.Event` or `asyncio.Condition`"),
    (("concurrent.futures",), "use `await asyncio.wrap_future(future)`, or `loop.run_in_executor(...)`"),
    (("multiprocessing",), "use `loop.run_in_executor(ProcessPoolExecutor(), ...)`"),
    (("asyncio.run_coroutine_threadsafe",), "await the coroutine itself"),
    (("bcrypt", "argon2", "passlib", "hashlib.scrypt", "hashlib.pbkdf2_hmac", "_hashlib", "werkzeug.security"),
     f"hash passwords in a thread: `await asyncio.to_thread(...)`, {_THREAD}"),
    (("re", "_sre", "sre_compile"),
     "rewrite the expression so that it cannot backtrack without end, or limit the length of its input"),
    (("json", "_json", "orjson", "pydantic", "pydantic_core", "fastapi.encoders", "ujson"),
     f"parse and serialize large bodies in a thread: `await asyncio.to_thread(...)`, {_THREAD}"),
    (("pandas", "numpy", "polars", "PIL", "cv2", "sklearn", "torch"), f"{_PROCESS}, {_THREAD}"),
    (("open", "io", "_io", "pathlib", "os.read", "os.stat", "os.listdir", "os.scandir", "os.walk", "shutil",
      "tempfile", "zipfile", "tarfile", "gzip", "csv"),
     f"read and write files in a thread: `await asyncio.to_thread(...)` or `anyio.open_file(...)`, {_THREAD}"),
    (("logging",), "send records through `logging.handlers.QueueHandler`"),
)  # fmt: skip

_BY_CAUSE = {
    CAUSE_CPU: f"{_PROCESS}; or declare the route with `def`, so that others can run meanwhile",
    CAUSE_GC: "create fewer objects that live long, or call `gc.freeze()` after startup",
    CAUSE_GIL: "another thread of this process computes: move its work into another process",
    CAUSE_STARVED: "the machine gave the CPU to others: raise the container's CPU limit or move its neighbours",
}
_GENERAL = "declare the route with `def`, or call it through `await asyncio.to_thread(...)`"


def remedy_for(cause: str, names: Iterable[str]) -> str:
    """Return what to do about a stall: by what was called, outermost first, and else by its cause.

    ``names`` are dotted: ``requests.api.get``, ``sqlite3.Cursor.execute``.
    """
    if cause in {CAUSE_GC, CAUSE_GIL, CAUSE_STARVED}:
        return _BY_CAUSE[cause]  # what runs on the loop is not to blame
    for name in names:
        for prefixes, instead in _INSTEAD:
            if any(name == prefix or name.startswith(prefix + ".") for prefix in prefixes):
                return instead
    return _BY_CAUSE.get(cause, _GENERAL)
