"""How is an app measured without a line of code in it? uvicorn serves it through what is made here.

``python -m loopwatch run main:app --port 8000`` is ``uvicorn main:app --port 8000`` with loopwatch switched on;
``LOOPWATCH_*`` variables configure it.
"""

from __future__ import annotations

import copy
import functools
import os
import sys
from typing import Any

from loopwatch.asgi import LoopWatchMiddleware, install, is_installed
from loopwatch.config import Config
from loopwatch.failures import logger

_APP = "_LOOPWATCH_RUN_APP"
"""The environment variable that says which app uvicorn's worker processes load."""

_FACTORY = "_LOOPWATCH_RUN_FACTORY"
_INTERFACE = "_LOOPWATCH_RUN_INTERFACE"


def main(app: str, arguments: list[str]) -> int:
    """Serve ``app`` (``module:attribute``) with uvicorn, given uvicorn's own further arguments; the exit code."""
    try:
        from uvicorn.main import main as uvicorn  # noqa: PLC0415 # loopwatch does not require it
    except ImportError:
        print("loopwatch run needs uvicorn: pip install uvicorn", file=sys.stderr)
        return 1
    try:
        Config.from_env()
    except ValueError as error:
        print(f"loopwatch: {error}", file=sys.stderr)
        return 2
    # uvicorn's own command reads its options, from arguments and from UVICORN_* variables.
    command = copy.copy(uvicorn)
    command.callback = functools.partial(_serve, uvicorn.callback)
    command([app, *arguments], prog_name="python -m loopwatch run")
    return 0


def _serve(serve: Any, *, app: str, factory: bool, interface: str, ws: str, **options: Any) -> None:
    """Have uvicorn serve :func:`measured`, an app of ASGI 3; what the options say of ``app`` is for that."""
    os.environ[_APP], os.environ[_INTERFACE] = app, interface
    os.environ[_FACTORY] = "yes" if factory else ""
    ws = "none" if interface == "wsgi" else ws  # as uvicorn has it
    serve(app=f"{__name__}:measured", factory=True, interface="asgi3", ws=ws, **options)


def measured() -> Any:
    """Return the app with loopwatch around it, or as it is where its own code has seen to that."""
    import uvicorn  # noqa: PLC0415
    from uvicorn.middleware.message_logger import MessageLoggerMiddleware  # noqa: PLC0415

    # uvicorn knows how to load an app, and makes one of ASGI 3 of it; it exits where there is none.
    loading = uvicorn.Config(
        os.environ[_APP],
        factory=bool(os.environ[_FACTORY]),
        interface=os.environ[_INTERFACE],  # type: ignore[arg-type] # one of its choices
        proxy_headers=False,
        log_config=None,
    )
    loading.load()
    app, config = loading.loaded_app, Config.from_env()
    if isinstance(
        app, MessageLoggerMiddleware
    ):  # with --log-level trace: the uvicorn that serves it logs them, too
        app = app.app
    if is_installed(app):
        if config != Config():
            logger.warning(
                "loopwatch: the app's own code installs loopwatch; "
                "LOOPWATCH_* variables hold as far as that reads them"
            )
        return app
    if hasattr(app, "build_middleware_stack"):
        install(app, config)
        return app
    return LoopWatchMiddleware(app, config)
