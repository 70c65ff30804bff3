"""How is an app measured without a line of code in it? uvicorn serves it through what is made here.

``python -m loopwatch run main:app --port 8000`` is ``uvicorn main:app --port 8000`` with loopwatch switched on;
``LOOPWATCH_*`` variables configure it.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from loopwatch.asgi import LoopWatchMiddleware, install, is_installed
from loopwatch.config import Config

_APP = "_LOOPWATCH_RUN_APP"
"""The environment variable that tells uvicorn's worker processes which app is meant."""

_FACTORY = "_LOOPWATCH_RUN_FACTORY"


def main(app: str, arguments: list[str]) -> int:
    """Serve ``app`` (``module:attribute``) with uvicorn, given uvicorn's own further arguments; the exit code."""
    try:
        from uvicorn.main import main as uvicorn  # noqa: PLC0415 # loopwatch does not require it
    except ImportError:
        print("loopwatch run needs uvicorn: pip install uvicorn", file=sys.stderr)
        return 1
    try:
        Config.from_env()
    except (TypeError, ValueError) as error:
        print(f"loopwatch: {error}", file=sys.stderr)
        return 2
    os.environ[_APP] = app
    os.environ[_FACTORY] = "yes" if "--factory" in arguments else ""
    arguments = [argument for argument in arguments if argument != "--factory"]
    uvicorn([f"{__name__}:measured", "--factory", *arguments], prog_name="python -m loopwatch run APP")
    return 0


def measured() -> Any:
    """Return the app with loopwatch around it, or as it is where its own code has seen to that."""
    from uvicorn.importer import import_from_string  # noqa: PLC0415

    app = import_from_string(os.environ[_APP])
    if os.environ[_FACTORY]:
        app = app()
    if is_installed(app):
        return app
    if hasattr(app, "build_middleware_stack"):
        install(app, Config.from_env())
        return app
    return LoopWatchMiddleware(app, Config.from_env())
