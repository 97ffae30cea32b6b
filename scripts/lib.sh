# Shared by the scripts beside it; bash, sourced, never run.
# shellcheck shell=bash

project=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
venv=$project/.venv
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
export project venv PATH

say() { printf '==> %s\n' "$*"; }

# One message, what to do about it on the lines after it, and no trace of the script.
die() {
    printf 'error: %s\n' "$1" >&2
    shift
    if [ $# -gt 0 ]; then printf '       %s\n' "$@" >&2; fi
    exit 1
}

have() { command -v "$1" >/dev/null 2>&1; }

is_root() { [ "$(id -u)" -eq 0 ]; }

# Runs a long command with its output in a log: a sign of life every ten seconds, and the log's
# end if it fails.  Usage: logged "what it does" LOG COMMAND…
logged() {
    local what=$1 log=$2 started=$SECONDS pid status=0
    shift 2
    say "$what"
    "$@" >"$log" 2>&1 </dev/null &
    pid=$!
    # shellcheck disable=SC2064  # the pid of now is meant
    trap "kill $pid 2>/dev/null; exit 130" INT TERM
    while ! wait_up_to 10 "$pid"; do
        printf '    %4ds  %s\n' $((SECONDS - started)) "$(tail -n 1 "$log" | cut -c 1-90)"
    done
    wait "$pid" || status=$?
    trap - INT TERM
    [ "$status" -eq 0 ] && return 0
    tail -n 15 "$log" | sed 's/^/    /' >&2
    printf 'error: failed (exit %s): %s; all of its output: %s\n' "$status" "$what" "$log" >&2
    return "$status"
}

# True when the process ended within that many seconds.
wait_up_to() {
    local tenths=$(($1 * 10))
    while [ "$tenths" -gt 0 ]; do
        kill -0 "$2" 2>/dev/null || return 0
        sleep 0.1
        tenths=$((tenths - 1))
    done
    return 1
}
