"""What failed in loopwatch itself? Said once in the log, counted always, never raised into the app."""

from __future__ import annotations

import logging
import traceback

from loopwatch.names import LONGEST_MESSAGE, described, printable

logger = logging.getLogger("loopwatch")


class Failures:
    """Collects the failures of one watch. Any thread."""

    __slots__ = ("_counts",)

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}

    def begin_anew(self) -> None:
        """Forget what has failed."""
        self._counts = {}

    def report(self, part: str, error: BaseException, consequence: str) -> None:
        """Count a failure of ``part`` and, the first time, log it with what it means for the user.

        Never raises: a logging handler of the app that fails must not become our failure.
        """
        count = self._counts.get(part, 0) + 1
        self._counts[part] = count
        if count > 1:
            return
        try:
            if logger.isEnabledFor(logging.ERROR):
                text = "loopwatch: %s failed (%s); %s. The app is not affected."
                _log(text, (part, described(error), consequence), error)
        except Exception:
            self._counts["log"] = self._counts.get("log", 0) + 1

    def read(self) -> dict[str, int]:
        """Return the failures of each part so far."""
        return dict(self._counts)


def _log(text: str, arguments: tuple[str, ...], error: BaseException) -> None:
    """Log an error with its traceback, whose lines stay lines even where it holds what would break them."""
    file, line, function, _ = logger.findCaller()
    raised = type(error), error, error.__traceback__
    record = logger.makeRecord(logger.name, logging.ERROR, file, line, text, arguments, raised, function)
    lines = "".join(traceback.format_exception(error)).rstrip("\n").split("\n")
    if not all(map(str.isprintable, lines)):  # formatters take a text that is there already
        record.exc_text = "\n".join(printable(line, LONGEST_MESSAGE) for line in lines)
    logger.handle(record)
