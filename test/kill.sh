#!/bin/sh
# keeper is killed by SIGKILL at N (10) random moments of imports and revocations: nothing acknowledged is lost, and every answer is from one generation.
set -eu
exec "$(dirname "$0")/trial/run.sh" kill "${1:-10}"
