"""Print each alert that an Alertmanager sends, in place of a pager. Run: python webhook.py [PORT]"""

from __future__ import annotations

import http.server
import json
import sys

PORT = 9099


class Printer(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()
        for alert in json.loads(body)["alerts"]:
            labels, notes = alert["labels"], alert["annotations"]
            print(f"{alert['status'].upper()} {labels['alertname']} ({labels['severity']}): {notes['summary']}")
            print(f"    {notes['description']}\n    {notes['runbook_url']}", flush=True)

    def log_message(self, *_):
        pass


if __name__ == "__main__":
    server = http.server.HTTPServer(("127.0.0.1", int(sys.argv[1]) if len(sys.argv) > 1 else PORT), Printer)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        server.server_close()
