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

# talk SERVED_BY NET OPTION...: has a guest with two queue pairs talk TCP both ways on both, stop its network
# in the middle, and start it again. The guest takes seconds for each megabyte of random bytes or of sums.
talk() {
    local served_by=$1 net=$2
    shift 2
    tap multi_queue
    for n in 1 2; do head -c 1000000 /dev/urandom >"to-$n"; done
    serve
    initrd '
        echo "mtu: $(cat /sys/class/net/eth0/mtu)"
        ip link set eth0 up; ip address add 10.9.0.2/24 dev eth0
        echo "queues: $(cd /sys/class/net/eth0/queues && echo *)"
        echo "carrier: $(cat /sys/class/net/eth0/carrier)"
        ping -c 1 -s 8900 10.9.0.1 | grep received
        for n in 1 2; do
            head -c 1000000 /dev/urandom >/from-$n
            (nc 10.9.0.1 500$n </from-$n; echo "sent $n: $(md5sum </from-$n)") &
            (nc 10.9.0.1 600$n </dev/null >/to-$n; echo "got $n: $(md5sum </to-$n)") &
        done
        wait
        echo "errors: $(cat /sys/class/net/eth0/statistics/*_errors | xargs)"
        echo waiting
        nc -l -p 7000 </dev/null
        cd /sys/bus/virtio/drivers/virtio_net
        device=$(echo virtio*)
        echo "$device" >unbind
        echo "$device" >bind
        ip link set eth0 up; ip address add 10.9.0.2/24 dev eth0
        nc 10.9.0.1 6001 </dev/null | md5sum | sed "s/^/again: /"
        nc -l -p 7000 </dev/null
        ip link set eth0 down
        poweroff -f'
    in_network "$ONGGI" boot --kernel "$KERNEL" --initrd initrd --cpus 2 --memory 256m \
        --cmdline 'console=ttyS0 quiet reboot=k panic=-1' \
        --net "tap=tap0,$net" "$@" >console </dev/null &
    local vm=$!
    eventually guest_says waiting
    expect "an answer to the host" in_network "$ONGGI_TEST_GUESTS/busybox" ping -c 1 -s 8900 10.9.0.2
    "$served_by" "$(process onggi)"
    in_network "$ONGGI_TEST_GUESTS/busybox" nc 10.9.0.2 7000 </dev/null
    eventually guest_says again:
    eventually in_network "$ONGGI_TEST_GUESTS/busybox" nc 10.9.0.2 7000 </dev/null
    run wait "$vm"
    expect_status 0
    out=$(tr -d '\r' <console)
    expect_out_has "mtu: 9000"
    expect_out_has "queues: rx-0 rx-1 tx-0 tx-1"
    expect_out_has "carrier: 1"
    expect_out_has "1 packets received"
    for n in 1 2; do
        expect_out_has "sent $n: $(md5sum <"from-$n")"
        expect_out_has "got $n: $(md5sum <"to-$n")"
    done
    expect_out_has "again: $(md5sum <to-1)"
    expect_out_has "errors: 0 0 0 0 0 0 0 0"
}

# Threads by which the kernel serves process $1: named vhost-PID, its own or, from Linux 6.4 on, the
# process's.
workers() { cat /proc/[0-9]*/task/*/comm 2>/dev/null | grep -cx "vhost-$1"; }

by_the_kernel() { expect "a worker of the kernel's for each pair" test "$(workers "$1")" = 2; }
by_onggi() { expect "no worker of the kernel's" test "$(workers "$1")" = 0; }

# What has limits is onggi's, whatever the kernel could do.
test_a_guest_with_two_queue_pairs_talks_tcp_both_ways() { talk by_onggi mtu=9000,vhost=auto,rx-bps=1g; }

test_the_kernel_serves_a_guest_with_two_queue_pairs() { talk by_the_kernel mtu=9000,vhost=on; }

test_the_kernel_serves_a_guest_on_pci() { talk by_the_kernel mtu=9000,vhost=auto --enable-pci; }

test_a_network_of_the_kernel_that_can_not_be_says_why() {
    tap
    rm /dev/vhost-net
    initrd 'poweroff -f'
    run in_network "$ONGGI" boot --kernel "$KERNEL" --initrd initrd --net tap=tap0,vhost=on
    local status_on=$status
    mknod /dev/vhost-net c 10 238
    status=$status_on expect_status 125
    expect_err_has "/dev/vhost-net can't be used: "
    expect_err_has "hint: it takes the module vhost_net"
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

api() { curl --silent --show-error --fail --unix-socket sock "http://localhost$1" "${@:2}"; }

test_a_guest_reads_its_metadata() {
    tap multi_queue
    local long
    long=$(head -c 30000 /dev/urandom | base64 -w 0)
    echo "{\"latest\": {\"meta-data\": {\"id\": \"i-1\", \"long\": \"$long\"}}}" >metadata
    cat >config <<END
{
    "boot-source": {
        "kernel_image_path": "$KERNEL", "initrd_path": "initrd",
        "boot_args": "console=ttyS0 quiet reboot=k panic=-1"
    },
    "machine-config": {"vcpu_count": 2, "mem_size_mib": 256},
    "network-interfaces": [{"iface_id": "e", "host_dev_name": "tap0"}],
    "mmds-config": {"network_interfaces": ["e"], "version": "V2"}
}
END
    initrd '
        ip link set eth0 up; ip address add 10.9.0.2/24 dev eth0
        ip route add 169.254.169.254 dev eth0
        service=http://169.254.169.254
        wget -q -O - $service/latest || echo "without a token: nothing"
        printf "PUT /latest/api/token HTTP/1.0\r\nX-metadata-token-ttl-seconds: 600\r\n\r\n" |
            nc 169.254.169.254 80 >/answer
        token=$(tail -n 1 /answer)
        get() { wget -q -O - --header "X-metadata-token: $token" "$@"; }
        echo "names: $(get $service/latest/meta-data | xargs)"
        echo "id: $(get --header "Accept: application/json" $service/latest/meta-data/id)"
        for n in 1 2 3; do (echo "long $n: $(get $service/latest/meta-data/long | sha256sum)") & done
        wait
        ping -c 2 10.9.0.1 | grep received
        ip route del 169.254.169.254
        ip route add default via 10.9.0.1
        echo "by the router: $(get $service/latest/meta-data/id)"
        echo waiting
        until get $service/ready >/ready; do sleep 0.2; done
        echo "ready: $(cat /ready)"
        poweroff -f'
    in_network "$ONGGI" vmm --api-sock sock --config-file config --metadata metadata \
        --mmds-size-limit 51200 >console </dev/null &
    local vm=$!
    eventually guest_says waiting
    api /mmds -X PATCH -d '{"ready": "it is"}'
    run wait "$vm"
    expect_status 0
    out=$(tr -d '\r' <console)
    expect_out_has "without a token: nothing"
    expect_out_has "names: id long"
    expect_out_has 'id: "i-1"'
    for n in 1 2 3; do expect_out_has "long $n: $(printf %s "$long" | sha256sum)"; done
    expect_out_has "2 packets received"
    expect_out_has "by the router: i-1"
    expect_out_has "ready: it is"
}

# uplink: makes a namespace whose only way out is an interface that leads nowhere, for passt to take
# addresses from: 10.9.0.2/24, by 10.9.0.1.
uplink() {
    unshare --net sleep "$TEST_SECONDS" &
    NETWORK=$!
    trap 'kill $NETWORK; rm -rf "$T"' EXIT
    eventually there
    in_network ip link set lo up
    in_network ip tuntap add up0 mode tap
    in_network ip link set up0 up
    in_network ip address add 10.9.0.2/24 dev up0
    in_network ip route add default via 10.9.0.1
}

# files: serves the folder ./www by HTTP on the namespace's loopback interface.
files() {
    in_network "$ONGGI_TEST_GUESTS/busybox" httpd -f -p 127.0.0.1:8000 -h www &
    SERVER=$!
    trap 'kill $SERVER $NETWORK; rm -rf "$T"' EXIT
}

boot_in_network() {
    in_network "$@" boot --kernel "$KERNEL" --initrd initrd --memory 256m \
        --cmdline 'console=ttyS0 quiet reboot=k panic=-1' --net "$NET"
}

# process NAME: the number of what runs in the namespace by that name.
process() { pgrep --ns "$NETWORK" --nslist net -x "$1"; }

test_a_guest_gets_its_address_and_files_by_passt() {
    uplink
    mkdir www && head -c 3000000 /dev/urandom >www/file
    files
    cat >udhcpc.sh <<'END'
#!/bin/sh
[ "$1" = bound ] || exit 0
ip address add "$ip/24" dev "$interface"
ip route add default via "$router"
echo "address: $ip, router: $router"
END
    initrd '
        ip link set eth0 up
        echo "mtu: $(cat /sys/class/net/eth0/mtu)"
        udhcpc -i eth0 -n -q -s /udhcpc.sh
        for n in 1 2; do wget -q -O - http://10.9.0.1:8000/file | sha256sum; done
        echo waiting
        nc -l -p 7000 >/from
        sha256sum </from
        poweroff -f'
    chmod +x udhcpc.sh && mv udhcpc.sh tree/ && pack
    NET=passt,host,publish=127.0.0.1:7001:7000
    boot_in_network "$ONGGI" >console </dev/null &
    local vm=$!
    eventually guest_says waiting
    in_network "$ONGGI_TEST_GUESTS/busybox" nc 127.0.0.1 7001 <www/file
    run wait "$vm"
    expect_status 0
    out=$(tr -d '\r' <console)
    expect_out_has "mtu: 65520"
    expect_out_has "address: 10.9.0.2, router: 10.9.0.1"
    local sum
    sum=$(sha256sum <www/file)
    expect "the file to come three times" test "$(grep -c "$sum" <<<"$out")" = 3
}

test_a_guest_survives_its_passt_and_a_passt_does_not_survive_its_guest() {
    uplink
    initrd '
        ip link set eth0 up
        echo "carrier: $(cat /sys/class/net/eth0/carrier)"
        echo waiting
        while [ "$(cat /sys/class/net/eth0/carrier)" = 1 ]; do sleep 0.1; done
        echo "carrier: lost"
        sleep 1000'
    NET=passt
    export ONGGI_LOG=warn
    boot_in_network "$ONGGI" >console 2>log </dev/null &
    local vm=$!
    eventually guest_says waiting
    kill -9 "$(process 'passt.*')"
    eventually guest_says "carrier: lost"
    kill -9 "$(process onggi)"
    wait "$vm" || true
    expect "a word of it" grep -q "passt has ended" log

    boot_in_network "$ONGGI" >console 2>log </dev/null &
    eventually guest_says waiting
    process 'passt.*' >passt
    kill -9 "$(process onggi)"
    gone() { ! process 'passt.*' >/dev/null; }
    eventually gone
}

test_any_user_has_passt() {
    uplink
    mkdir www && echo hello from the host >www/file
    files
    initrd '
        ip link set eth0 up; ip address add 10.9.0.2/24 dev eth0
        wget -q -O - http://10.9.0.1:8000/file
        poweroff -f'
    NET=passt,host
    chmod a+rwx /dev/kvm "$T"
    run boot_in_network setpriv --reuid 65534 --regid 65534 --clear-groups "$ONGGI"
    expect_status 0
    expect_out_has "hello from the host"
}

test_passt_that_does_not_start_says_why() {
    uplink
    initrd 'poweroff -f'
    NET=passt
    in_network ip route del default
    run boot_in_network "$ONGGI"
    expect_status 125
    expect_err_has "passt did not start: "
    expect_err_has "hint: passt needs an interface"
    run in_network env PATH=/nonexistent "$ONGGI" boot --kernel "$KERNEL" --net passt
    expect_status 125
    expect_err_has "needs the program 'passt', which is not installed"
}
