#!/usr/bin/env bash
# The same without Docker and Grafana: the gallery with two workers under load, Prometheus, Alertmanager, and alerts
# on the screen. Options: --quick, --help and more. Ctrl-C ends it all.
source "$(dirname "${BASH_SOURCE[0]}")/../../scripts/_env.sh"
python=$(any_python) || exit
folder=$(make_env gallery "$python") || exit
PYTHONPATH="examples:.${PYTHONPATH:+:$PYTHONPATH}" exec "$folder/bin/python" -m monitoring.run "$@"
