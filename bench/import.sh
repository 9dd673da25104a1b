#!/bin/sh
# A CRL of N entries (1,000,000) through `ocspd crl import`: against the sqlite3 shell, keeper's memory, answers and revocations meanwhile.
set -eu
exec "$(dirname "$0")/../test/trial/run.sh" import "${1:-1000000}"
