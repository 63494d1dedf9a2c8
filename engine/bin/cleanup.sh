#!/usr/bin/env bash
# Remove what has outlived its retention, now; the timer does the same. Arguments go to `cfn cleanup`.
set -euo pipefail
self=$(readlink -f -- "${BASH_SOURCE[0]}")
exec "${self%/*}/cfn" cleanup "$@"
