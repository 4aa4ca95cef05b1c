# shellcheck shell=bash
# Firecracker's clients, unmodified: what they are given is their surroundings. tools/clients made
# ready what they need.

CLIENTS=$(cd "$(dirname "${BASH_SOURCE[0]}")/../clients" && pwd)
export KERNEL=$ONGGI_ASSETS/vmlinux-x86_64 ROOT_DISK=$ONGGI_TEST_CLIENTS/guest.ext4
# The Python of the packages.
PYTHON=/usr/bin/python3
export PYTHONPATH=$ONGGI_TEST_CLIENTS/site PYTHONDONTWRITEBYTECODE=1

# own_namespace COMMAND...: in a network, among processes and in a view of the files of its own, which
# go with it: clients leave processes behind.
own_namespace() {
    unshare --net --mount --propagation private --pid --fork --kill-child --mount-proc "$@"
}

# with_tap COMMAND...: with tap0, 10.9.0.1/24.
with_tap() {
    ln -s "$ONGGI" firecracker
    export FIRECRACKER=$T/firecracker
    # shellcheck disable=SC2016 # for the other shell
    run own_namespace bash -ec '
        ip tuntap add tap0 mode tap
        ip address add 10.9.0.1/24 dev tap0
        ip link set tap0 up
        exec "$@"' bash "$@"
}

test_firepilot_works_unchanged() {
    with_tap "$ONGGI_TEST_CLIENTS/bin/with_firepilot"
    expect_status 0
}

test_fctools_works_unchanged() {
    with_tap "$ONGGI_TEST_CLIENTS/bin/with_fctools"
    expect_status 0
}

test_dud_works_unchanged() {
    ln -s "$ONGGI" firecracker
    DUD_FIRECRACKER=$T/firecracker DUD_FC_METRICS=1 \
        run "$PYTHON" "$CLIENTS/with_dud.py" "$ONGGI_TEST_CLIENTS/dud" "$KERNEL"
    expect_status 0
}

test_firecracker_python_works_unchanged() {
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=here \
        -addext subjectAltName=DNS:ifconfig.me -keyout key -out certificate
    echo "127.0.0.1 ifconfig.me" >hosts
    export DOCKER_HOST=unix://$T/docker REQUESTS_CA_BUNDLE=$T/certificate
    # shellcheck disable=SC2016 # for the other shell
    run own_namespace bash -ec '
        mount -t tmpfs bin /usr/local/bin && ln -s "$ONGGI" /usr/local/bin/firecracker
        mount -t tmpfs lib /var/lib && mkdir /var/lib/firecracker
        mount --bind hosts /etc/hosts
        # The way out, which has the name of the interface in the guest.
        ip link set lo up
        ip tuntap add eth0 mode tap
        ip address add 192.0.2.1/24 dev eth0
        ip link set eth0 up
        ip route add default via 192.0.2.2
        "$1" "$2/surroundings.py" docker certificate key &
        trap "kill $!" EXIT
        until [ -e served ]; do sleep 0.1; done
        "$1" "$2/with_firecracker_python.py" "$KERNEL" "$ROOT_DISK"' bash "$PYTHON" "$CLIENTS"
    expect_status 0
}
