"""What failed in loopwatch itself? Said once in the log, counted always, never raised into the app."""

from __future__ import annotations

import logging

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
            logger.error(
                "loopwatch: %s failed (%s: %s); %s. The app is not affected.",
                part,
                type(error).__name__,
                error,
                consequence,
                exc_info=error,
            )
        except Exception:
            self._counts["log"] = self._counts.get("log", 0) + 1

    def read(self) -> dict[str, int]:
        """Return the failures of each part so far."""
        return dict(self._counts)
