"""How is an app measured without a line of code in it? uvicorn serves it through what is made here.

``python -m loopwatch run main:app --port 8000`` is ``uvicorn main:app --port 8000`` with loopwatch switched on;
``LOOPWATCH_*`` variables configure it.
"""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any

from loopwatch.asgi import LoopWatchMiddleware, install, is_installed
from loopwatch.config import Config
from loopwatch.failures import logger

_APP = "_LOOPWATCH_RUN_APP"
"""The environment variable that tells uvicorn's worker processes which app is meant."""

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
    # These are about the app, and uvicorn would take them to be about what is made here.
    parser = argparse.ArgumentParser("python -m loopwatch run", add_help=False, allow_abbrev=False)
    parser.add_argument("--factory", action="store_true")
    parser.add_argument("--interface", choices=["auto", "asgi3", "asgi2", "wsgi"], default="auto")
    about, further = parser.parse_known_args(arguments)
    os.environ[_APP], os.environ[_INTERFACE] = app, about.interface
    os.environ[_FACTORY] = "yes" if about.factory else ""
    uvicorn([f"{__name__}:measured", "--factory", *further], prog_name="python -m loopwatch run")
    return 0


def measured() -> Any:
    """Return the app with loopwatch around it, or as it is where its own code has seen to that."""
    import uvicorn  # noqa: PLC0415

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
