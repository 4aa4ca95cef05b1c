# shellcheck shell=bash
# The balloon: a guest's memory that goes back to the host.

# shellcheck source=tests/linux/guests.sh
source "$(dirname "${BASH_SOURCE[0]}")/guests.sh"

COMMAND_LINE='console=ttyS0 quiet reboot=k panic=-1'

# boot [ARG...]: our kernel with ./initrd; what its console says is $out.
boot() {
    run "$ONGGI" boot --kernel "$KERNEL" --initrd initrd --cmdline "$COMMAND_LINE" "$@"
    out=${out//$'\r'/}
}

# kib FIELD PID: an amount of /proc/PID/status in KiB.
kib() { sed -n "s/^$1:[[:space:]]*\([0-9]*\) kB$/\1/p" "/proc/$2/status"; }

# shrunk PID KIB: whether the process has so much less than it had at most.
shrunk() { (($(kib VmHWM "$1") - $(kib VmRSS "$1") > $2)); }

test_a_balloon_takes_memory_from_its_guest() {
    initrd '
        total() { awk "/^MemTotal/ { print \$2 }" /proc/meminfo; }
        until [ $(total) -lt 130000 ]; do sleep 0.1; done
        echo "total: $(total)"
        poweroff -f'
    boot --memory 256m --balloon 128m
    expect_status 0
    expect_out_has "total: "
}

test_a_guest_without_memory_takes_it_back_from_the_balloon() {
    initrd '
        mount -t tmpfs -o size=100% tmp /mnt
        available() { awk "/^MemFree/ { print \$2 }" /proc/meminfo; }
        until [ $(available) -lt 90000 ]; do sleep 0.1; done
        dd if=/dev/zero of=/mnt/file bs=1M count=112 2>/dev/null && echo "written: $(wc -c </mnt/file)"
        poweroff -f'
    boot --memory 256m --balloon 160m,deflate-on-oom
    expect_status 0
    expect_out_has "written: $((112 << 20))"
}

test_a_balloon_gives_the_host_what_its_guest_frees() {
    initrd '
        mount -t tmpfs -o size=100% tmp /mnt
        dd if=/dev/zero of=/mnt/file bs=1M count=96 2>/dev/null
        rm /mnt/file
        echo freed
        sleep 1000'
    "$ONGGI" boot --kernel "$KERNEL" --initrd initrd --cmdline "$COMMAND_LINE" \
        --memory 256m --balloon 0,reporting >log 2>&1 </dev/null &
    local pid=$!
    eventually grep -q freed log
    expect "96 MiB were there" test "$(kib VmHWM $pid)" -gt $((96 << 10))
    eventually shrunk $pid $((64 << 10))
    kill -KILL $pid
}

test_a_balloon_is_no_larger_than_its_guest() {
    initrd 'poweroff -f'
    boot --memory 128m --balloon 129m
    expect_status 125
    expect_err_has "a balloon of 129 MiB is too large: the guest has 128 MiB of memory"
}

# ask METHOD PATH [BODY]: the answer of the VM's API, of one line.
ask() {
    curl --silent --show-error --fail-with-body --unix-socket api.sock \
        --request "$1" ${3:+--data "$3"} "http://localhost$2"
}

# says PATH FIELD TEST...: whether a number that the API gives is so.
says() {
    local number
    number=$(ask GET "$1" | sed -n "s/.*\"$2\":\([0-9]*\).*/\1/p")
    test "${number:--1}" "${@:3}"
}

test_a_balloon_is_changed_while_its_guest_runs() {
    initrd 'echo ready; sleep 1000'
    "$ONGGI" vmm --api-sock api.sock >log 2>&1 </dev/null &
    local pid=$!
    eventually test -S api.sock
    ask PUT /boot-source "{\"kernel_image_path\":\"$KERNEL\",\"initrd_path\":\"$PWD/initrd\",\"boot_args\":\"$COMMAND_LINE\"}"
    ask PUT /machine-config '{"vcpu_count":1,"mem_size_mib":256}'
    ask PUT /balloon '{"amount_mib":0,"deflate_on_oom":false,"stats_polling_interval_s":1,"free_page_hinting":true}'
    ask PUT /actions '{"action_type":"InstanceStart"}'
    eventually grep -q ready log
    eventually says /balloon/statistics total_memory -gt $((200 << 20))
    expect "free memory" says /balloon/statistics free_memory -gt $((100 << 20))
    # What is free, all at once.
    local before
    before=$(kib VmRSS $pid)
    ask PATCH /balloon/hinting/start '{"acknowledge_on_stop":true}'
    eventually says /balloon/hinting/status guest_cmd -eq 0
    expect "the end of the run" says /balloon/hinting/status host_cmd -eq 1
    ask PATCH /balloon '{"amount_mib":128}'
    eventually says /balloon/statistics actual_mib -eq 128
    eventually says /balloon/statistics total_memory -lt $((140 << 20))
    ask PATCH /balloon '{"amount_mib":0}'
    eventually says /balloon/statistics actual_mib -eq 0
    eventually says /balloon/statistics total_memory -gt $((200 << 20))
    ask PATCH /vm '{"state":"Paused"}'
    ask PATCH /vm '{"state":"Resumed"}'
    expect "no more than before" test "$(kib VmRSS $pid)" -lt $((before + (16 << 10)))
    kill -KILL $pid
}
