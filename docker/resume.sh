#!/bin/sh
# Run a command, and run it again on the same cluster if a signal ended it: `resume python -m jobs.generate ...`.
# A driver that was killed, such as for want of memory, goes on where it was. Every other end is the command's own: 0,
# 1 (stopped) and 2 (wrong input) would be the same again, and SIGINT (130) and SIGTERM (143) were meant.
tries=5
while "$@"; code=$?; [ "$code" -gt 128 ] && [ "$code" -ne 130 ] && [ "$code" -ne 143 ] && [ "$tries" -gt 1 ]; do
  tries=$((tries - 1))
  echo "resume: signal $((code - 128)) ended the command; it runs again, $tries tries are left" >&2
done
exit "$code"
