# shellcheck shell=bash
# Network namespaces that go with the test.

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

there() { [[ $(readlink "/proc/$NETWORK/ns/net") != "$(readlink /proc/self/ns/net)" ]]; }

in_network() { nsenter --net="/proc/$NETWORK/ns/net" "$@"; }
