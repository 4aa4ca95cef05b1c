# shellcheck shell=bash
# `onggi run`: containers in microVMs, without a terminal. Where it makes no
# difference they share a VM, which is quicker than one for each.

TINY=oci:$ONGGI_TEST_IMAGES/tiny:latest
CONFIGURED=oci:$ONGGI_TEST_IMAGES/tiny:configured
PYTHON=oci:$ONGGI_TEST_IMAGES/debian-python:latest

# container ARG...: what it says and how it ends is in $out, $err and $status.
container() { run "$ONGGI" run --rm "$@"; }

# The same in the VM that they share.
in_pod() {
    pod >/dev/null || exit
    container --vm pod "$@"
}

# Makes that VM unless it's there. Tests run one after the other.
pod() {
    "$ONGGI" vm ls --format '{{.Name}} {{.Status}}' | grep -q '^pod running$' || "$ONGGI" vm create pod
}

test_python_runs_under_a_kernel_of_its_own() {
    container "$PYTHON" python3 -c 'import json, os; print(json.dumps({"kernel": os.uname().release}))'
    expect_status 0
    expect_out_has '{"kernel": "'
    expect "another kernel than the host's" test "${out/$(uname -r)/}" = "$out"
}

test_the_images_command_runs_where_none_is_given() {
    in_pod -i "$PYTHON" < <(echo 'print(6 * 7)')
    expect_status 0
    expect_out 42
}

test_two_runs_have_two_boots() {
    container "$TINY" cat /proc/sys/kernel/random/boot_id
    expect_status 0
    local first=$out
    container "$TINY" cat /proc/sys/kernel/random/boot_id
    expect "another boot" test "$out" -a "$first" != "$out"
}

test_output_error_and_exit_code_come_back() {
    in_pod "$TINY" sh -c 'echo out; echo err >&2; exit 7'
    expect_status 7
    expect_out out
    expect_err err
}

test_a_command_that_a_signal_ended_is_128_plus_it() {
    # A fault is the one signal that PID 1 can't survive by ignoring it.
    in_pod "$PYTHON" python3 -c 'import ctypes; ctypes.string_at(0)'
    expect_status 139
}

test_a_command_that_is_not_there_is_127() {
    in_pod "$TINY" nonesuch
    expect_status 127
    expect_err_has nonesuch
}

test_a_command_that_is_no_program_is_126() {
    in_pod "$TINY" /etc/passwd
    expect_status 126
    expect_err_has /etc/passwd
}

test_standard_input_goes_in_when_asked_for() {
    seq 200000 >numbers
    in_pod -i "$TINY" sha256sum <numbers
    expect_status 0
    expect_out "$(sha256sum <numbers)"
    in_pod "$TINY" cat <numbers
    expect_status 0
    expect_out ""
}

test_bytes_of_any_kind_come_out_at_the_readers_pace() {
    head -c 8000000 /dev/urandom >bytes
    "$ONGGI" run --rm -i "$TINY" cat <bytes | { sleep 3; cat; } >copy
    expect "the same bytes" cmp bytes copy
}

test_a_reader_that_leaves_ends_the_writer() {
    "$ONGGI" run --rm "$TINY" yes 2>/dev/null | head -n 1 >first
    expect "the first line" test "$(cat first)" = y
}

test_the_environment_is_the_images_and_the_flags() {
    echo FROM_FILE=file >list
    FROM_HOST=host in_pod -e GIVEN='a value' -e FROM_HOST --env-file list \
        --entrypoint env "$CONFIGURED"
    expect_status 0
    expect_out_has "COLOUR=from the image"
    expect_out_has "GIVEN=a value"
    expect_out_has "FROM_HOST=host"
    expect_out_has "FROM_FILE=file"
    in_pod -e COLOUR=mine --entrypoint env "$CONFIGURED"
    expect_out_has "COLOUR=mine"
}

test_entrypoint_and_command_work_together() {
    in_pod "$CONFIGURED"
    expect_out "entrypoint default"
    in_pod "$CONFIGURED" given here
    expect_out "entrypoint given here"
    in_pod --entrypoint cat "$CONFIGURED" /proc/1/comm
    expect_out cat
}

test_the_user_is_the_images_or_the_flags() {
    in_pod --entrypoint id "$CONFIGURED"
    expect_out "uid=1000(user) gid=1000(user) groups=1000(user),2000(extra)"
    in_pod "$TINY" id -u
    expect_out 0
    in_pod -u 12:34 "$TINY" sh -c 'echo $(id -u):$(id -g)'
    expect_out 12:34
    in_pod -u user:extra "$TINY" sh -c 'echo $(id -un):$(id -gn)'
    expect_out user:extra
    in_pod -u nobody-here "$TINY" id
    expect "a failure" test "$status" -ge 125
    expect_err_has nobody-here
}

test_the_working_folder_is_the_images_or_the_flags() {
    in_pod --entrypoint pwd "$CONFIGURED"
    expect_out /srv
    in_pod -w /etc "$TINY" pwd
    expect_out /etc
    in_pod -w /made/for/this "$TINY" pwd
    expect_status 0
    expect_out /made/for/this
}

test_the_host_name_is_the_flags() {
    in_pod -h jar.example "$TINY" hostname
    expect_out jar.example
}

test_cpus_and_memory_are_the_flags() {
    container --cpus 2 --memory 512m "$TINY" sh -c 'nproc; awk "/^MemTotal/ { print \$2 }" /proc/meminfo'
    expect_status 0
    local cpus memory
    { read -r cpus; read -r memory; } <<<"$out"
    expect "2 CPUs, not $cpus" test "$cpus" = 2
    expect "about 512 MiB, not $memory KiB" test "$memory" -gt 440000 -a "$memory" -le 524288
}

test_what_is_written_stays_in_its_own_container() {
    in_pod "$TINY" sh -c 'echo mine >/file && rm /bin/vi && cat /file; test -e /bin/vi || echo gone'
    expect_out $'mine\ngone'
    in_pod "$TINY" sh -c 'cat /file; ls /bin/vi'
    expect_out /bin/vi
    expect_err_has "No such file"
}

test_a_full_disk_is_an_error_and_not_an_end() {
    container "$TINY" sh -c 'fallocate -l 100G /big; rm /big; echo alive >/file; cat /file'
    expect_status 0
    expect_out alive
    expect_err_has "No space left"
}

test_containers_run_side_by_side() {
    "$ONGGI" run --rm --name one "$TINY" sh -c 'sleep 3; echo one' >one &
    "$ONGGI" run --rm --name two "$TINY" sh -c 'sleep 3; echo two' >two &
    wait
    expect "both outputs" test "$(cat one two | xargs)" = "one two"
}

test_a_command_that_is_killed_leaves_its_container_alone() {
    "$ONGGI" run --name jar "$TINY" sh -c 'echo ready; sleep 1000' >log 2>&1 &
    eventually grep -q ready log
    container --name jar "$TINY" true
    expect_status 125
    expect_err_has "'jar' is in use"
    kill -KILL $!
    wait $! 2>/dev/null
    run "$ONGGI" exec jar echo alive
    expect_out alive
    run "$ONGGI" rm -f jar
    expect_status 0
    run "$ONGGI" ps -aq --filter name=jar
    expect_out ""
}

test_signals_reach_the_command() {
    pod >/dev/null
    "$ONGGI" run --rm --vm pod "$TINY" sh -c 'trap "exit 42" TERM; echo ready; while :; do sleep 0.2; done' >log 2>&1 &
    eventually grep -q ready log
    kill -TERM $!
    status=0
    wait $! || status=$?
    expect_status 42
}

test_orphans_are_reaped_and_do_not_keep_the_vm() {
    in_pod "$TINY" sh -c '(sleep 1000 &) ; (true &) ; sleep 1; echo done'
    expect_status 0
    expect_out "done"
}

test_images_are_listed_and_removed() {
    export ONGGI_HOME=$T/home
    run "$ONGGI" pull "$TINY"
    expect_status 0
    run "$ONGGI" images
    expect_out_has "${TINY%:latest}"
    run "$ONGGI" rmi "$TINY"
    expect_status 0
    run "$ONGGI" images --quiet
    expect_out ""
    container --pull never "$TINY" true
    expect_status 125
}
