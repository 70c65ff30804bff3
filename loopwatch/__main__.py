"""``python -m loopwatch run APP`` and ``python -m loopwatch selftest``."""

from __future__ import annotations

import argparse
import sys


def main(arguments: list[str] | None = None) -> int:
    """Run the command that the arguments name; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m loopwatch", description="Watches event loops.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("selftest", help="block real loops for known times and report what was detected")
    run = commands.add_parser(
        "run",
        help="serve an app with uvicorn, measured, without a change to its code",
        usage="python -m loopwatch run APP [any option of uvicorn]",
        description="Serve an app with uvicorn and loopwatch around it. LOOPWATCH_* variables configure loopwatch, "
        "for example LOOPWATCH_METRICS_PORT=9101. Options are uvicorn's: see uvicorn --help.",
    )
    run.add_argument("app", metavar="APP", help="module:attribute, as for uvicorn")
    known, further = parser.parse_known_args(arguments)
    # What is measured is loaded here, since --help need not.
    if known.command == "run":
        from loopwatch.run import main as serve  # noqa: PLC0415

        if ":" not in known.app:
            run.error(f"APP comes first, as module:attribute, got {known.app!r}. Write for example: run main:app")
        return serve(known.app, further)
    if further:
        parser.error(f"unrecognized arguments: {' '.join(further)}")
    from loopwatch.selftest import main as test  # noqa: PLC0415

    return test()


if __name__ == "__main__":
    sys.exit(main())
