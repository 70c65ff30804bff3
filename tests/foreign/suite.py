"""Run tests of unittest and write each one's outcome as JSON: ``python -m tests.foreign.suite OUT bare NAME …``."""

from __future__ import annotations

import json
import pathlib
import sys
import unittest


class Outcomes(unittest.TextTestResult):
    """Notes how each test, and each subtest that fails, has ended."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.of = {}

    def _note(self, test, outcome):
        self.of[test.id()] = outcome

    def addSuccess(self, test):  # noqa: N802 # unittest's names
        super().addSuccess(test)
        self.of.setdefault(test.id(), "passed")  # a subtest of it may have failed

    def addError(self, test, error):  # noqa: N802
        super().addError(test, error)
        self._note(test, "error")

    def addFailure(self, test, error):  # noqa: N802
        super().addFailure(test, error)
        self._note(test, "failed")

    def addSkip(self, test, reason):  # noqa: N802
        super().addSkip(test, reason)
        self._note(test, "skipped")

    def addExpectedFailure(self, test, error):  # noqa: N802
        super().addExpectedFailure(test, error)
        self._note(test, "expected failure")

    def addUnexpectedSuccess(self, test):  # noqa: N802
        super().addUnexpectedSuccess(test)
        self._note(test, "unexpected success")

    def addSubTest(self, test, subtest, error):  # noqa: N802
        super().addSubTest(test, subtest, error)
        if error is not None:
            self._note(subtest, "failed")


def main(out, kind, names):
    """Run the tests that are named, measured or bare."""
    totals = None
    if kind == "measured":
        from tests.foreign import measuring

        measuring.measure_every_loop()
        totals = measuring.totals
    tests = unittest.defaultTestLoader.loadTestsFromNames(names)
    result = unittest.TextTestRunner(resultclass=Outcomes).run(tests)
    if totals is not None:
        measuring.add_up()
    pathlib.Path(out).write_text(json.dumps({"outcomes": result.of, "measured": totals}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
