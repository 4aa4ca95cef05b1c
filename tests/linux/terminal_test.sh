# shellcheck shell=bash
# `onggi run -t` on a pseudoterminal, which `script` provides.

TINY=oci:$ONGGI_TEST_IMAGES/tiny:latest

# on_terminal COMMAND: a shell command with a terminal; its screen is $out. What
# the caller sends to standard input are the keys.
on_terminal() {
    run script --quiet --return --command "$1" /dev/null
    out=${out//$'\r'/}
}

test_the_command_has_a_terminal_of_the_callers_size() {
    on_terminal "stty rows 33 cols 99; $ONGGI run --rm -t $TINY sh -c 'tty; stty size; test -t 2 && exit 9'"
    expect_status 9
    expect_out_has /dev/
    expect_out_has "33 99"
}

test_without_the_flag_there_is_none() {
    on_terminal "$ONGGI run --rm $TINY sh -c 'test -t 1 || echo no terminal'"
    expect_status 0
    expect_out_has "no terminal"
}

test_a_shell_is_driven_by_keys() {
    on_terminal "$ONGGI run --rm -it $TINY sh" < <(
        eventually_on_screen '#'
        printf 'echo $((6 * 7))\r'
        eventually_on_screen 42
        printf 'exit 5\r'
        sleep 60
    )
    expect_status 5
    expect_out_has 42
}

test_ctrl_c_goes_to_the_container() {
    on_terminal "$ONGGI run --rm -it $TINY sh -c 'trap \"echo caught; exit 4\" INT; echo ready; while :; do sleep 0.2; done'" < <(
        eventually_on_screen ready
        printf '\003'
        sleep 60
    )
    expect_status 4
    expect_out_has caught
}

test_the_terminal_is_as_it_was_afterwards() {
    on_terminal "stty -a >before; $ONGGI run --rm -it $TINY true; stty -a >after; cmp before after && echo same"
    expect_out_has same
}

test_the_terminal_is_restored_when_onggi_is_told_to_end() {
    cat >steps <<STEPS
stty -a >before
sh -c 'echo \$\$ >pid; exec $ONGGI run --rm -it $TINY sh -c "echo ready; exec sleep 1000"'
echo "ended with \$?"
stty -a >after
cmp before after && echo same
STEPS
    # A command that ignores the signal, as PID 1 does without a handler, is
    # ended by the third of them.
    on_terminal "sh steps" < <(
        eventually_on_screen ready
        for _ in 1 2 3; do
            kill -TERM "$(cat pid)"
            sleep 0.3
        done
        sleep 60
    )
    expect_out_has "ended with 143"
    expect_out_has same
}

test_a_terminal_on_the_host_is_needed_for_it_to_be_interactive() {
    run "$ONGGI" run --rm -it "$TINY" true
    expect_status 125
    expect_err_has "not a TTY"
}

# Waits for what the terminal shows.
eventually_on_screen() { eventually grep -qF "$1" "$T/.out"; }
