# shellcheck shell=bash
# Linux guests on a tap device. It lies in a network namespace that goes with the test.
# shellcheck source=tests/linux/guests.sh
source "$(dirname "${BASH_SOURCE[0]}")/guests.sh"

# tap OPTION...: makes a namespace with tap0 in it, 10.9.0.1/24.
tap() {
    unshare --net sleep "$TEST_SECONDS" &
    NETWORK=$!
    trap 'kill $NETWORK; rm -rf "$T"' EXIT
    eventually there
    in_network ip tuntap add tap0 mode tap vnet_hdr "$@"
    in_network ip link set tap0 mtu 9000 up
    in_network ip address add 10.9.0.1/24 dev tap0
}

there() { [[ $(readlink "/proc/$NETWORK/ns/net") != "$(readlink /proc/self/ns/net)" ]]; }

in_network() { nsenter --net="/proc/$NETWORK/ns/net" "$@"; }

# serve: takes connections of the guest. What comes to port 5000 + N is kept in the file from-N,
# and those to 6000 + N get the file to-N.
serve() {
    in_network python3 - <<'END' &
import shutil, socketserver, threading

class Keep(socketserver.StreamRequestHandler):
    def handle(self):
        with open(f"from-{self.server.server_address[1] - 5000}", "wb") as file:
            shutil.copyfileobj(self.rfile, file)

class Give(socketserver.StreamRequestHandler):
    def handle(self):
        with open(f"to-{self.server.server_address[1] - 6000}", "rb") as file:
            shutil.copyfileobj(file, self.wfile)

for n in (1, 2):
    for port, handler in ((5000 + n, Keep), (6000 + n, Give)):
        server = socketserver.ThreadingTCPServer(("10.9.0.1", port), handler)
        threading.Thread(target=server.serve_forever).start()
open("served", "w").close()
END
    SERVER=$!
    trap 'kill $SERVER $NETWORK; rm -rf "$T"' EXIT
    eventually test -e served
}

guest_says() { grep -q "$1" console; }

test_a_guest_with_two_queue_pairs_talks_tcp_both_ways() {
    tap multi_queue
    for n in 1 2; do head -c 6000000 /dev/urandom >"to-$n"; done
    serve
    initrd '
        echo "mtu: $(cat /sys/class/net/eth0/mtu)"
        ip link set eth0 up; ip address add 10.9.0.2/24 dev eth0
        echo "queues: $(cd /sys/class/net/eth0/queues && echo *)"
        echo "carrier: $(cat /sys/class/net/eth0/carrier)"
        ping -c 2 10.9.0.1 | grep received
        ping -c 2 -s 8900 10.9.0.1 | grep received
        for n in 1 2; do
            head -c 6000000 /dev/urandom >/from-$n
            (nc 10.9.0.1 500$n </from-$n; echo "sent $n: $(sha256sum </from-$n)") &
            (nc 10.9.0.1 600$n </dev/null >/to-$n; echo "got $n: $(sha256sum </to-$n)") &
        done
        wait
        echo "errors: $(cat /sys/class/net/eth0/statistics/*_errors | xargs)"
        echo waiting
        nc -l -p 7000 </dev/null
        ip link set eth0 down
        poweroff -f'
    in_network "$ONGGI" boot --kernel "$KERNEL" --initrd initrd --cpus 2 --memory 256m \
        --cmdline 'console=ttyS0 quiet reboot=k panic=-1' \
        --net tap=tap0,mtu=9000 >console </dev/null &
    local vm=$!
    eventually guest_says waiting
    expect "an answer to the host" in_network "$ONGGI_TEST_GUESTS/busybox" ping -c 2 -s 8900 10.9.0.2
    in_network "$ONGGI_TEST_GUESTS/busybox" nc 10.9.0.2 7000 </dev/null
    run wait "$vm"
    expect_status 0
    out=$(tr -d '\r' <console)
    expect_out_has "mtu: 9000"
    expect_out_has "queues: rx-0 rx-1 tx-0 tx-1"
    expect_out_has "carrier: 1"
    expect "two pings to be answered" test "$(grep -c '2 packets received' <<<"$out")" = 2
    for n in 1 2; do
        expect_out_has "sent $n: $(sha256sum <"from-$n")"
        expect_out_has "got $n: $(sha256sum <"to-$n")"
    done
    expect_out_has "errors: 0 0 0 0 0 0 0 0"
}

test_a_tap_device_with_one_queue_will_do() {
    tap
    initrd '
        ip link set eth0 up; ip address add 10.9.0.2/24 dev eth0
        echo "queues: $(cd /sys/class/net/eth0/queues && echo *)"
        ping -c 2 10.9.0.1 | grep received
        poweroff -f'
    boot() { in_network "$ONGGI" boot --kernel "$KERNEL" --initrd initrd --cpus 2 --memory 256m --cmdline 'console=ttyS0 quiet reboot=k panic=-1' "$@"; }
    run boot --net tap=tap0,queues=2
    expect_status 125
    expect_err_has "the tap device 'tap0' has only one queue"
    expect_err_has "multi_queue"
    run boot --net tap=tap0
    expect_status 0
    expect_out_has "queues: rx-0 tx-0"
    expect_out_has "2 packets received"
}
