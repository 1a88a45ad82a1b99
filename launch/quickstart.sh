#!/usr/bin/env bash
# The miniature end to end on a fresh machine: environment, data, the chain trained from scratch,
# images, and runs/quickstart/report.html with runs/quickstart/metrics.json. Run it again and it
# reuses what is there.

source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
exec "$PYTHON_IN_VENV" -m launch.quickstart "$@"
