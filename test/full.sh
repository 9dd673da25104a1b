#!/bin/sh
# The disk below the state fills up (a small tmpfs): a revocation fails and says why, answers go on, and all is well once there is room.
set -eu
exec "$(dirname "$0")/trial/run.sh" full 1
