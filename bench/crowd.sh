#!/bin/sh
# A CRL of N entries (1,000,000) through `ocspd crl import` while clients leave no processor idle: how long it takes, and revocations meanwhile.
set -eu
exec "$(dirname "$0")/../test/trial/run.sh" crowd "${1:-1000000}"
