#!/bin/sh
# The one table: every objective of the library on the digits, by the same commands; see reproduce_digits.py.
exec "${PYTHON:-python}" "$(dirname "$0")/reproduce_digits.py" "$@"
