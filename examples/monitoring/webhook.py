"""Print each alert that an Alertmanager sends, in place of a pager. Run: python webhook.py [PORT]"""

from __future__ import annotations

import http.server
import json
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

PORT = 9099


def in_words(alert: dict[str, Any]) -> str:
    """Say what an alert says."""
    labels, notes = alert["labels"], alert["annotations"]
    lines = [f"{alert['status'].upper()} {labels['alertname']} ({labels['severity']}): {notes['summary']}"]
    if alert["status"] == "firing":
        lines += [f"    {notes[name]}" for name in ("description", "remedy", "runbook_url") if name in notes]
    return "\n".join(lines)


def webhook(port: int, say: Callable[[str], object]) -> http.server.HTTPServer:
    """Return a server that hands each alert to ``say``, in words."""

    class Webhook(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()
            for alert in json.loads(body)["alerts"]:
                say(in_words(alert))

        def log_message(self, *_: object) -> None:
            pass

    return http.server.HTTPServer(("127.0.0.1", port), Webhook)


if __name__ == "__main__":
    server = webhook(int(sys.argv[1]) if len(sys.argv) > 1 else PORT, lambda text: print(text, flush=True))
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        server.server_close()
