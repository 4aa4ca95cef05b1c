# shellcheck shell=bash
# A small runner for tests that drive commands. A test is a function named
# `test_...` in a file of its own kind; its name says what must hold.
#
# Each test runs in a shell of its own with a time limit and an empty folder $T,
# which is also its working folder.

# No expectation on speed: enough for a hang to be one, on a slow machine too.
TEST_SECONDS=${ONGGI_TEST_SECONDS:-300}

# run_tests FILE...: runs every test of the files (those whose names contain
# $ONGGI_TEST_ONLY, if set), prints the output of those that fail, and sums up.
run_tests() {
    local file name passed=0 failed=0 started log
    log=$(mktemp)
    for file in "$@"; do
        while read -r name; do
            [[ $name == *"${ONGGI_TEST_ONLY:-}"* ]] || continue
            started=$SECONDS
            if timeout --kill-after=10 "$TEST_SECONDS" bash "${BASH_SOURCE[0]}" "$file" "$name" \
                >"$log" 2>&1 </dev/null; then
                passed=$((passed + 1))
                printf 'ok      %s (%d s)\n' "${name#test_}" $((SECONDS - started))
            else
                failed=$((failed + 1))
                printf 'FAILED  %s (%d s)\n' "${name#test_}" $((SECONDS - started))
                sed 's/^/    | /' "$log"
            fi
        done < <(sed -n 's/^\(test_[a-z0-9_]*\)() {.*/\1/p' "$file")
    done
    rm -f "$log"
    printf '%d passed, %d failed\n' "$passed" "$failed"
    ((passed > 0 && failed == 0))
}

# run COMMAND [ARG...]: keeps its exit code in $status, and its output in $out
# and $err. Standard input is the caller's.
run() {
    status=0
    "$@" >"$T/.out" 2>"$T/.err" || status=$?
    out=$(tr -d '\0' <"$T/.out") err=$(tr -d '\0' <"$T/.err")
}

# The expectations on what was run last.
expect_status() { [[ $status == "$1" ]] || wrong "exit code $1" "$status"; }
expect_out() { [[ $out == "$1" ]] || wrong "standard output '$1'" "'$out'"; }
expect_err() { [[ $err == "$1" ]] || wrong "standard error '$1'" "'$err'"; }
expect_out_has() { [[ $out == *"$1"* ]] || wrong "'$1' in standard output" "'$out'"; }
expect_err_has() { [[ $err == *"$1"* ]] || wrong "'$1' in standard error" "'$err'"; }
# expect CLAIM COMMAND...: for all the rest.
expect() { "${@:2}" || wrong "$1" "the contrary"; }

wrong() {
    printf 'line %s: expected %s, got %s\n' "$(caller_line)" "$1" "$2"
    printf -- '--- exit code %s; standard output:\n%s\n--- standard error:\n%s\n' \
        "${status:-?}" "${out:-}" "${err:-}"
    [[ ! -s log ]] || printf -- '--- the end of the log:\n%s\n' "$(tail -n 20 log)"
    exit 1
}

# Where in the test's file the expectation stands.
caller_line() {
    local depth
    for depth in "${!BASH_SOURCE[@]}"; do
        [[ ${BASH_SOURCE[depth]} == "${BASH_SOURCE[0]}" ]] || break
    done
    printf '%s' "${BASH_LINENO[depth - 1]}"
}

# eventually COMMAND...: waits for it to succeed.
eventually() {
    local _
    for _ in {1..600}; do
        ! "$@" || return 0
        sleep 0.1
    done
    wrong "'$*' to come true" "nothing in 60 s"
}

# The way in of run_tests' child: one test.
if [[ ${BASH_SOURCE[0]} == "$0" ]]; then
    set -uo pipefail
    # shellcheck disable=SC1090
    source "$1"
    T=$(mktemp -d)
    trap 'rm -rf "$T"' EXIT
    cd "$T" || exit
    "$2"
    # A test that got here met all its expectations.
    exit 0
fi
