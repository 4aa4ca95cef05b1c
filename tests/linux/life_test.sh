# shellcheck shell=bash
# The life of containers: begun, looked at, ended, killed, and what remains of them.
# shellcheck source=tests/linux/namespaces.sh
source "$(dirname "${BASH_SOURCE[0]}")/namespaces.sh"

TINY=oci:$ONGGI_TEST_IMAGES/tiny:latest
PYTHON=oci:$ONGGI_TEST_IMAGES/debian-python:latest

onggi() { run "$ONGGI" "$@"; }

# state CONTAINER: its state as inspect tells it.
state() { "$ONGGI" inspect --format '{{.State.Status}}' "$1"; }
is() { [[ $(state "$1") == "$2" ]]; }

# said CONTAINER TEXT: whether its log has a line.
said() { "$ONGGI" logs "$1" 2>&1 | grep -qxF "$2"; }

# home: a test's own containers; the images are those of all tests. Whatever it leaves behind ends
# with it.
home() {
    export ONGGI_HOME=$T/home
    mkdir "$ONGGI_HOME" && ln -s "$IMAGES_HOME/images" "$ONGGI_HOME/images"
    trap 'cleanup; rm -rf "$T"' EXIT
}

cleanup() { "$ONGGI" ps -aq | xargs -r "$ONGGI" rm -f >/dev/null 2>&1; }

test_a_container_lives_is_entered_and_ends() {
    home
    onggi run -d --name web -e COLOUR=blue -u user -w /srv --hostname jar "$TINY" sh -c '
        trap "echo bye; exit 7" TERM
        echo ready; echo to stderr >&2; while :; do sleep 0.1; done'
    expect_status 0
    local id=$out
    eventually said web ready

    onggi ps --format '{{.ID}} {{.Names}} {{.State}}'
    expect_out "${id:0:12} web running"

    # What exec takes from the container, and what its flags change.
    onggi exec web sh -c 'id -un; pwd; echo $COLOUR; hostname; exit 3'
    expect_status 3
    expect_out $'user\n/srv\nblue\njar'
    onggi exec -u 0 -w / -e COLOUR=red web sh -c 'id -u; pwd; echo $COLOUR'
    expect_out $'0\n/\nred'
    run "$ONGGI" exec -i "${id:0:6}" sha256sum < <(seq 100000)
    expect_out "$(seq 100000 | sha256sum)"
    onggi exec web nonesuch
    expect_status 127
    onggi exec web /etc/passwd
    expect_status 126
    onggi exec -u nobody-here web true
    expect_status 125
    expect_err_has nobody-here
    onggi exec -d -u 0 web sh -c 'echo detached >/tmp/file'
    expect_status 0
    eventually "$ONGGI" exec web grep -q detached /tmp/file

    onggi logs web
    expect_out ready
    expect_err "to stderr"
    onggi logs --tail 1 --timestamps web
    expect "one line with its time" grep -qE '^2[0-9-]+T[0-9:.]+Z (ready|to stderr)$' <<<"$out$err"
    onggi logs --since 2099-01-01 web
    expect_out ""
    onggi top web
    expect_out_has "sleep 0.1"
    onggi stats --no-stream --format '{{.Name}} {{.PIDs}}' web
    expect_out_has "web "

    # Files in and out, and what remains of them over a restart.
    mkdir -p tree/sub && echo one >tree/sub/one && ln -s one tree/sub/link && chmod 640 tree/sub/one
    onggi cp tree web:/srv
    expect_status 0
    onggi exec -u 0 web sh -c 'cat /srv/tree/sub/link; stat -c %a:%u /srv/tree/sub/one'
    expect_out $'one\n640:0'
    onggi cp web:/srv/tree/. back
    expect "the same files" diff -r tree back
    onggi cp web:/nowhere .
    expect_status 1
    expect_err_has /nowhere
    "$ONGGI" cp web:/etc/passwd - | tar x
    expect "a file by tar" grep -q user passwd

    onggi rename web jar
    onggi stop jar
    expect_status 0
    onggi inspect --format '{{.State.Status}} {{.State.ExitCode}}' jar
    expect_out "exited 7"
    onggi logs jar
    expect_out $'ready\nbye'
    onggi exec jar true
    expect_status 125
    # Out of one that does not run.
    onggi cp jar:/srv/tree/sub/one -
    expect_status 0
    expect "it is still stopped" is jar exited

    onggi start jar
    expect_status 0
    onggi exec -u 0 jar cat /srv/tree/sub/one
    expect_out one
    onggi kill -s USR1 jar
    expect_status 0
    onggi rm jar
    expect_status 125
    expect_err_has "is running"
    "$ONGGI" wait jar >code &
    onggi rm -f jar
    expect_status 0
    onggi ps -aq
    expect_out ""
    expect "nothing of its VM" test -z "$(find "$ONGGI_HOME"/{vms,names} -mindepth 1)"
}

test_a_killed_monitor_loses_no_data_and_ps_tells_the_truth() {
    home
    onggi volume create --size 32m data
    expect_status 0
    onggi run -d --name writer --restart no -v data:/data "$TINY" sh -c '
        n=0; while :; do n=$((n + 1)); echo $n >/data/n; sync; echo $n; done'
    eventually said writer 3
    # It is as large as it was made, and full is an error in it.
    onggi exec writer sh -c 'dd if=/dev/zero of=/data/big bs=1M count=40; rm /data/big; echo alive'
    expect_out alive
    expect_err_has "No space left"
    # A second VM can't have it.
    onggi run --rm -v data:/data "$TINY" true
    expect_status 125
    expect_err_has "in use"
    onggi volume rm data
    expect_err_has "in use by writer"

    kill -9 "$("$ONGGI" inspect --format '{{.State.Pid}}' writer)"
    eventually is writer exited
    onggi inspect --format '{{.State.ExitCode}} {{.State.Error}}' writer
    expect_out_has "137 the process of its VM was killed"
    local last
    last=$("$ONGGI" logs --tail 1 writer)
    onggi run --rm -v data:/data "$TINY" cat /data/n
    expect_status 0
    expect "what was synced to be there: $out after $last" test "$out" -ge "$last"
    onggi rm writer
    onggi volume rm data
    expect_status 0
}

test_one_that_goes_with_its_end_goes_with_a_kill_too() {
    home
    "$ONGGI" run --rm --name brief "$TINY" sh -c 'echo ready; sleep 1000' >log 2>&1 &
    eventually grep -q ready log
    kill -9 "$("$ONGGI" inspect --format '{{.State.Pid}}' brief)"
    run wait $!
    expect_status 125
    onggi ps -aq
    expect_out ""
    expect "nothing of its VM" test -z "$(ls "$ONGGI_HOME/vms")"
}

test_policies_and_checks() {
    home
    onggi vm create --memory 128m pod
    expect_status 0
    onggi run -d --vm pod --name fails --restart on-failure:2 "$TINY" sh -c 'echo run; exit 3'
    onggi run -d --vm pod --name ends --restart always "$TINY" sh -c 'echo run; sleep 0.5'
    onggi run -d --vm pod --name ill --health-cmd 'test -e /well' --health-interval 300ms \
        --health-retries 2 "$TINY" sleep 1000
    eventually is fails exited
    onggi inspect --format '{{.RestartCount}} {{.State.ExitCode}}' fails
    expect_out "2 3"
    onggi logs fails
    expect_out $'run\nrun\nrun'
    restarted() { [[ $("$ONGGI" inspect --format '{{.RestartCount}}' ends) -ge 2 ]]; }
    eventually restarted
    onggi stop -t 0 ends
    expect "it is not started again" is ends exited

    health() { "$ONGGI" ps --filter name=ill --format '{{.Status}}' | grep -q "($1)"; }
    eventually health unhealthy
    onggi exec ill touch /well
    eventually health healthy
    onggi ps -q --filter health=healthy
    expect "one that is well" test "$(wc -l <<<"$out")" = 1

    # A container that fails to start says so to its caller, and does not take the VM along.
    onggi run --vm pod --name never "$TINY" nonesuch
    expect_status 127
    onggi exec ill echo there
    expect_out there
    onggi vm rm pod
    expect_err_has "has containers"
    onggi vm rm -f pod
    expect_status 0
    onggi ps -aq
    expect_out ""
}

test_containers_that_share_a_vm() {
    home
    onggi run -d --name first "$TINY" sh -c '
        mkdir /www; echo page >/www/index.html; exec httpd -f -p 80 -h /www'
    expect_status 0
    # Another image's layers come to a VM that runs.
    onggi run --rm --vm first "$PYTHON" python3 -c '
import os, urllib.request
print(urllib.request.urlopen("http://127.0.0.1/").read().decode().strip())
print(os.path.exists("/www"), len([p for p in os.listdir("/proc") if p.isdigit()]))'
    expect_status 0
    expect_out $'page\nFalse 1'
    # Twenty at once, each with files of its own.
    local n
    for n in {1..20}; do
        "$ONGGI" run -d --vm first --name "c$n" "$TINY" sh -c "echo $n >/n; exec sleep 1000" >/dev/null &
    done
    wait
    onggi ps -q
    expect "21 to run" test "$(wc -l <<<"$out")" = 21
    for n in 1 9 20; do
        onggi exec "c$n" cat /n
        expect_out "$n"
    done
    # The VM of the first one goes on without it, and ends with the last.
    onggi rm -f first
    onggi exec c3 true
    expect_status 0
    "$ONGGI" ps -q | xargs "$ONGGI" rm -f >/dev/null
    expect "nothing of its VM" test -z "$(ls "$ONGGI_HOME/vms")"
}

test_floods_and_pipes() {
    home
    onggi run -d --name flood --log-opt max-size=1m --log-opt max-file=2 "$TINY" yes
    expect_status 0
    sleep 2
    expect "the log to be bounded" test "$(du -sm "$ONGGI_HOME"/containers/*/ | cut -f1)" -le 3
    onggi stop -t 0 flood
    expect_status 0

    # Each way, byte for byte. An emulated host takes minutes for a hundred megabytes.
    local bytes=$((${ONGGI_TEST_MEGABYTES:-16} * 1000000))
    seq 100000000 | head -c $bytes >lines
    onggi run -d -i --name pipes "$TINY" cat
    "$ONGGI" exec -i pipes cat <lines >copy
    expect "the same through exec" cmp lines copy
    rm copy
    "$ONGGI" exec pipes sh -c "yes 0123456789 | head -c $bytes >/proc/1/fd/1"
    written() { [[ $("$ONGGI" logs pipes | wc -c) == "$bytes" ]]; }
    eventually written
    onggi rm -f pipes
}

test_streams_that_are_left_and_taken_up_again() {
    home
    run script --quiet --return --command "$ONGGI run -it --name shell $TINY sh" /dev/null < <(
        eventually grep -qF '#' "$T/.out"
        printf 'echo be''fore\r'
        eventually grep -qF before "$T/.out"
        printf '\020\021'
        sleep 60
    )
    expect_status 0
    expect "it goes on" is shell running
    run script --quiet --return --command "$ONGGI attach shell" /dev/null < <(
        printf 'echo af''ter; exit 6\r'
        sleep 60
    )
    expect_status 6
    expect_out_has after

    # An input that ends is the command's end of it; what is left open is not.
    onggi run -d -i --name calm "$TINY" cat
    local word
    for word in hello again; do
        "$ONGGI" attach calm < <(echo $word) &
        eventually said calm $word
        kill -9 $!
    done
    expect "its input is still open" is calm running
}

test_ports_and_names() {
    home
    uplink
    trap 'cleanup; kill $NETWORK; rm -rf "$T"' EXIT
    cat >names.py <<'END'
import socket
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind(("127.0.0.1", 53))
open("serving", "w").close()
while True:
    query, client = server.recvfrom(512)
    end = query.index(b"\0", 12) + 5
    answer = b"\xc0\x0c\0\1\0\1\0\0\0\1\0\4\x0a\x09\x08\x07" if query[end - 3] == 1 else b""
    head = query[:2] + b"\x81\x80\0\1" + (b"\0\1" if answer else b"\0\0") + b"\0\0\0\0"
    server.sendto(head + query[12:end] + answer, client)
END
    in_network python3 names.py &
    local server=$!
    trap 'cleanup; kill $server $NETWORK; rm -rf "$T"' EXIT
    eventually test -e serving
    echo nameserver 127.0.0.1 >resolv.conf
    in_network unshare --mount sh -c "mount --bind resolv.conf /etc/resolv.conf &&
        exec $ONGGI run -d --name web -p 127.0.0.1:8080:80 -p 5000 $TINY sh -c '
            echo page >/index.html; exec httpd -f -p 80 -h /'"
    onggi ps --format '{{.Ports}}'
    expect_out_has "127.0.0.1:8080->80/tcp"
    onggi port web 80
    expect_out 127.0.0.1:8080
    fetched() { in_network "$ONGGI_TEST_GUESTS/busybox" wget -q -O - http://127.0.0.1:8080/ | grep -qx page; }
    eventually fetched
    onggi exec web nslookup any.name
    expect_out_has 10.9.8.7
    onggi exec web ip route
    expect_out_has "default via 10.0.2.2"
    # A port that is taken is refused before anything is made.
    run in_network "$ONGGI" run --rm -p 127.0.0.1:8080:80 "$TINY" true
    expect_status 125
    expect_err_has "port 8080/tcp of the host can't be opened"
}
