"""How do the dashboards look? Screenshots of them over a Prometheus, drawn by Grafana's own components.

Run from the project's root: python dashboards/preview/screenshot.py --prometheus http://127.0.0.1:9090 --out shots
"""

import argparse
import contextlib
import os
import pathlib
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence

from playwright.sync_api import Error, sync_playwright

HERE = pathlib.Path(__file__).resolve().parent
DASHBOARDS = ("overview", "route")
WIDTH, HEIGHT = 1600, 900
START_SECONDS, DRAW_SECONDS = 60, 120
REASONS = "[...document.querySelectorAll('[data-failed]')].map((at) => `${at.dataset.failed}: ${at.textContent}`)"


def _is_older(target: pathlib.Path, *sources: pathlib.Path) -> bool:
    return not target.exists() or target.stat().st_mtime < max(source.stat().st_mtime for source in sources)


def _run(*command: str) -> None:
    done = subprocess.run(
        command, check=False, cwd=HERE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout}")


def build() -> None:
    """Install the page's packages and build it, where either is missing or out of date."""
    lock, installed = HERE / "package-lock.json", HERE / "node_modules/.package-lock.json"
    if _is_older(installed, lock):
        _run("npm", "ci", "--no-audit", "--no-fund")
        installed.touch()
    page = HERE / "dist/index.html"
    if _is_older(page, lock, HERE / "index.html", HERE / "vite.config.js", *(HERE / "src").iterdir()):
        _run("npx", "vite", "build")


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _await_port(port: int, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while server.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", port)).close()
            return
        time.sleep(0.1)
    raise RuntimeError(f"vite preview does not listen on port {port}")


@contextlib.contextmanager
def _served(prometheus_url: str) -> Iterator[str]:
    """Serve the built page, and stop it whatever happens."""
    port = _free_port()
    # Not by npx: its child would outlive it.
    command = f"node node_modules/vite/bin/vite.js preview --port {port} --strictPort --logLevel silent".split()
    environment = os.environ | {"PROMETHEUS_URL": prometheus_url}
    server = subprocess.Popen(command, cwd=HERE, env=environment, stdout=subprocess.DEVNULL)
    try:
        _await_port(port, server)
        yield f"http://127.0.0.1:{port}/"
    finally:
        server.terminate()
        server.wait()


def _chromium() -> str:
    found = shutil.which("chromium")
    if not found:
        raise RuntimeError("no chromium on the PATH; on Debian: apt-get install --no-install-recommends chromium")
    return found


def take(
    prometheus_url: str,
    out: pathlib.Path,
    *,
    dashboards: Sequence[str] = DASHBOARDS,
    start: float,
    end: float,
    scrape: str,
    variables: Mapping[str, str | Sequence[str]],
    theme: str = "dark",
) -> dict[str, int]:
    """Write a screenshot of each dashboard; return how many of its panels failed or had no data, and say why.

    ``start`` and ``end`` are Unix seconds, ``scrape`` is Prometheus's scrape interval, such as ``"15s"``. A
    variable that is not given has the dashboard's own value. Raises RuntimeError if the page cannot be built,
    served or drawn.
    """
    for dashboard in dashboards:
        if not (HERE.parent / f"loopwatch-{dashboard}.json").exists():
            raise RuntimeError(f"no dashboards/loopwatch-{dashboard}.json; run python -m dashboards.build")
    build()
    out.mkdir(parents=True, exist_ok=True)
    chosen = [
        (f"var-{name}", each)
        for name, value in variables.items()
        for each in ([value] if isinstance(value, str) else value)
    ]
    failed = {}
    with _served(prometheus_url) as url, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=_chromium(), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, device_scale_factor=1)
        for dashboard in dashboards:
            asked = {"dashboard": dashboard, "from": start, "to": end, "scrape": scrape, "theme": theme}
            page.goto(f"{url}?{urllib.parse.urlencode([*asked.items(), *chosen])}")
            try:
                page.wait_for_selector("body[data-ready]", timeout=DRAW_SECONDS * 1000)
            except Error as error:
                raise RuntimeError(f"{dashboard} was not drawn in {DRAW_SECONDS} seconds") from error
            page.screenshot(path=out / f"{dashboard}.png", full_page=True)
            failed[dashboard] = int(page.evaluate("document.body.dataset.errors"))
            for reason in page.evaluate(REASONS):
                print(f"{dashboard}: {reason}", file=sys.stderr)
        browser.close()
    return failed


def _variable(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is no NAME=VALUE")
    return name, value


def _scrape(text: str) -> str:
    if not re.fullmatch(r"\d+(ms|s|m)", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no interval such as 15s")
    return text


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prometheus", default="http://127.0.0.1:9090", metavar="URL", help="default: %(default)s")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path(), help="the folder to write into")
    parser.add_argument(
        "--dashboards", nargs="+", default=DASHBOARDS, metavar="NAME", help="default: overview route"
    )
    parser.add_argument("--end", type=float, default=time.time(), help="Unix seconds (default: now)")
    parser.add_argument("--start", type=float, help="Unix seconds (default: an hour before the end)")
    parser.add_argument("--scrape", type=_scrape, default="15s", help="Prometheus's scrape interval (default: 15s)")
    parser.add_argument(
        "--var", type=_variable, action="append", default=[], metavar="NAME=VALUE",
        help="a variable's value; may be given several times, also for one variable",
    )  # fmt: skip
    parser.add_argument("--theme", choices=["dark", "light"], default="dark")
    return parser


def main() -> int:
    """Run the command; return its exit code."""
    options = _parser().parse_args()
    variables: dict[str, list[str]] = {}
    for name, value in options.var:
        variables.setdefault(name, []).append(value)
    start = options.end - 3600 if options.start is None else options.start
    try:
        failed = take(
            options.prometheus, options.out, dashboards=options.dashboards, start=start, end=options.end,
            scrape=options.scrape, variables=variables, theme=options.theme,
        )  # fmt: skip
    except (RuntimeError, Error, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    for dashboard, count in failed.items():
        print(f"{options.out / dashboard}.png: {count} panels failed or had no data")
    return 1 if any(failed.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
