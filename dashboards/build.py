"""Write the dashboards and alert rules, or check that the files are what would be written.

Run from the project's root: python -m dashboards.build [--check] [--lag-warning 0.2] [--to FOLDER]
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
import re
import sys
from typing import TYPE_CHECKING

from grafana_foundation_sdk.cog.encoder import JSONEncoder

from dashboards import alerts, overview, panels, route

if TYPE_CHECKING:
    from collections.abc import Callable

    from grafana_foundation_sdk.models.dashboard import Dashboard

HERE = pathlib.Path(__file__).parent
DURATION = re.compile(r"(\d+(ms|[smhdwy]))+")


def _json(dashboard: Dashboard) -> str:
    return json.dumps(dashboard, cls=JSONEncoder, indent=2, sort_keys=True) + "\n"


def files(thresholds: alerts.Thresholds) -> dict[str, str]:
    """Return the text of each file, by its name."""
    return {
        f"{overview.UID}.json": _json(overview.overview(thresholds)),
        f"{panels.ROUTE_UID}.json": _json(route.route(thresholds)),
        "alerts.yml": alerts.text(thresholds),
    }


def _duration(text: str) -> str:
    if not DURATION.fullmatch(text):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no duration; write it as Prometheus does, such as 30s or 10m"
        )
    return text


def _amount(text: str) -> float:
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def _address(text: str) -> str:
    if text and not text.startswith(("http://", "https://")):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no address; give the one at which your copy of the runbook is served, such as "
            "https://wiki.example.com/loopwatch"
        )
    return text


def _kind(field: dataclasses.Field[str | float]) -> Callable[[str], str | float]:
    if isinstance(field.default, float):
        return _amount
    return _address if field.name == "runbook" else _duration


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m dashboards.build", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a file differs")
    parser.add_argument(
        "--to", type=pathlib.Path, default=HERE, help="the folder to write into (default: this one)"
    )
    group = parser.add_argument_group("thresholds")
    for field in dataclasses.fields(alerts.Thresholds):
        says = (
            "the address that alerts link to; default: no link"
            if field.name == "runbook"
            else "default: %(default)s"
        )
        group.add_argument("--" + field.name.replace("_", "-"), type=_kind(field), default=field.default, help=says)
    return parser


def main() -> int:
    """Run the command; return its exit code."""
    options = vars(_parser().parse_args())
    check, folder = options.pop("check"), options.pop("to")
    differ = []
    for name, text in files(alerts.Thresholds(**options)).items():
        file = folder / name
        if file.exists() and file.read_text() == text:
            continue
        differ.append(name)
        if not check:
            folder.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
            print(f"wrote {file}")
    if check and differ:
        print(f"{', '.join(differ)}: not what would be built; run python -m dashboards.build", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
