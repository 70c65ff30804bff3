"""Write docs/reference.md: all settings, from their docstrings, and all metrics, from the catalogue.

Run from the project's root: python scripts/reference.py [--check]
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import inspect
import itertools
import pathlib
import sys
from typing import TYPE_CHECKING

from loopwatch import catalogue, config

if TYPE_CHECKING:
    from collections.abc import Iterable

PAGE = pathlib.Path(__file__).parent.parent / "docs" / "reference.md"


def meanings() -> dict[str, str]:
    """Return what each setting means: the string that stands below it."""
    source = ast.parse(inspect.getsource(config.Config))
    (settings,) = (node for node in source.body if isinstance(node, ast.ClassDef))
    found = {}
    for field, text in itertools.pairwise(settings.body):
        match field, text:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(meaning))):
                found[name] = " ".join(meaning.split()).replace("``", "`")
    return found


def table(*rows: Iterable[str]) -> str:
    """Return rows, the first of them headings, as Markdown."""
    heading, *others = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([heading, "|---" * (heading.count(" | ") + 1) + "|", *others])


def settings() -> str:
    """Return the table of settings."""
    means = meanings()
    rows = [
        (f"`{field.name}`", f"`LOOPWATCH_{field.name.upper()}`", f"`{field.default!r}`", means[field.name])
        for field in dataclasses.fields(config.Config)
    ]
    return table(("field", "variable", "default", "meaning"), *rows)


def metrics() -> str:
    """Return the table of metrics."""
    rows = [
        (
            f"`{metric.prometheus_name}`",
            f"`{metric.name}`",
            metric.kind,
            ", ".join(f"`{label}`" for label in metric.labels),
            metric.help,
        )
        for metric in catalogue.METRICS
    ]
    return table(("Prometheus", "OpenTelemetry", "kind", "labels", "meaning"), *rows)


def page() -> str:
    """Return the page's text."""
    return f"""# Reference

Made by `python scripts/reference.py`.

## Settings

Fields of `loopwatch.Config`. `Config.from_env()` reads the variables, and so do `python -m loopwatch run` and
`opentelemetry-instrument`; `off` stands for `None` there.

{settings()}

Two variables are no settings. `LOOPWATCH_PURE=1` selects the plain core when loopwatch is imported, and leaves the
compiled one out when loopwatch is built. `LOOPWATCH_REQUIRE_COMPILED=1` makes a build without the compiled core
fail, with the compiler's message.

## Metrics

Durations are in seconds. OpenTelemetry's attributes are called as the labels, with a dot for `_` in `http.route`,
`http.request.method` and `http.response.status_class`. A route is a template, `_unmatched` where there is none, or
`_other` past `max_routes`; a pool is `_other` past `max_pools`.

{metrics()}
"""


def main() -> int:
    """Write the page, or check it; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if the page differs")
    if not parser.parse_args().check:
        PAGE.write_text(page())
        return 0
    if PAGE.is_file() and PAGE.read_text() == page():
        return 0
    print(f"{PAGE.name} is not what it should be: run python scripts/reference.py", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
