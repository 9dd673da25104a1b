#!/bin/sh
# The power fails N (3) times under imports and revocations (an ext4 on a loop device, shut down by ioctl): nothing acknowledged is lost.
set -eu
exec "$(dirname "$0")/trial/run.sh" power "${1:-3}"
