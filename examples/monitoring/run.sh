#!/usr/bin/env bash
# The same without Docker and Grafana: the gallery with two workers, Prometheus, Alertmanager, and alerts on the screen.
# Needs: apt-get install -y --no-install-recommends prometheus prometheus-alertmanager. Ctrl-C ends it all.
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
source "$here/../../scripts/_env.sh"
for server in prometheus prometheus-alertmanager; do
    command -v "$server" >/dev/null || {
        echo "No $server on the PATH. On Debian: apt-get install -y --no-install-recommends $server" >&2
        exit 1
    }
done
folder=$(make_env gallery "$(any_python)")
data=$(mktemp -d)
trap 'trap - EXIT; kill $(jobs -p) 2>/dev/null; wait; rm -rf "$data"' EXIT
trap exit INT TERM
mkdir "$data/workers"
PROMETHEUS_MULTIPROC_DIR="$data/workers" "$folder/bin/python" -m uvicorn --app-dir examples 05_gallery:app \
    --port 8000 --workers 2 --log-level warning &
prometheus --config.file="$here/prometheus.yml" --storage.tsdb.path="$data/prometheus" \
    --web.listen-address=127.0.0.1:9090 --log.level=error &
prometheus-alertmanager --config.file="$here/alertmanager.yml" --storage.path="$data/alertmanager" \
    --web.listen-address=127.0.0.1:9093 --cluster.listen-address= --log.level=error &
"$folder/bin/python" -u "$here/webhook.py" &
echo "Gallery http://127.0.0.1:8000/docs, Prometheus http://127.0.0.1:9090, Alertmanager http://127.0.0.1:9093"
wait -n
