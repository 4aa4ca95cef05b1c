# shellcheck shell=bash
# `onggi boot`: plain microVMs with Linux in them.

# shellcheck source=tests/linux/guests.sh
source "$(dirname "${BASH_SOURCE[0]}")/guests.sh"

# boot [ARG...]: our kernel with ./initrd; what its console says is $out.
boot() {
    run "$ONGGI" boot --kernel "$KERNEL" --initrd initrd --cmdline 'console=ttyS0 quiet reboot=k panic=-1' "$@"
    out=${out//$'\r'/}
}

test_a_vmlinux_boots_with_an_initrd_and_powers_off() {
    initrd 'echo "hello from $(uname -s)"; poweroff -f'
    boot
    expect_status 0
    expect_out_has "hello from Linux"
}

test_a_bzimage_boots() {
    initrd 'echo "hello from $(uname -r)"; poweroff -f'
    KERNEL=$ONGGI_TEST_GUESTS/bzImage
    boot --memory 256m
    expect_status 0
    expect_out_has "cloud-amd64"
}

test_a_guest_finds_the_machine_that_was_asked_for() {
    initrd '
        echo "cpus: $(nproc)"
        grep -q "^model name.*[A-Za-z]" /proc/cpuinfo && echo "a brand string"
        grep -qw hypervisor /proc/cpuinfo && echo "a hypervisor"
        echo "clock: $(cat /sys/devices/system/clocksource/clocksource0/current_clocksource)"
        echo "siblings: $(cat /sys/devices/system/cpu/cpu3/topology/core_siblings_list)"
        echo "random: $(cat /sys/class/misc/hw_random/rng_current)"
        echo "acpi tables: $(ls /sys/firmware/acpi/tables | xargs)"
        echo "cmdline: $(cat /proc/cmdline)"
        poweroff -f'
    boot --cpus 4 --memory 256m
    expect_status 0
    expect_out_has "cpus: 4"
    expect_out_has "a brand string"
    expect_out_has "a hypervisor"
    expect_out_has "clock: kvm-clock"
    expect_out_has "siblings: 0-3"
    expect_out_has "random: virtio_rng"
    for table in APIC DSDT FACP; do expect_out_has "$table"; done
    expect_out_has "console=ttyS0 quiet"
}

test_memory_lies_on_both_sides_of_the_32_bit_hole() {
    initrd '
        echo "total: $(awk "/^MemTotal/ { print \$2 }" /proc/meminfo)"
        grep "System RAM" /proc/iomem
        poweroff -f'
    boot --memory 3584m
    expect_status 0
    local total
    total=$(sed -n 's/^total: //p' <<<"$out")
    expect "nearly 3.5 GiB, not $total KiB" test "$total" -gt 3400000
    expect "memory above the hole" grep -qi '^ *100000000-' <<<"$out"
}

test_a_reboot_ends_the_vm() {
    initrd 'echo bye; reboot -f'
    boot
    expect_status 0
    expect_out_has bye
}

test_a_panic_is_told_by_message_and_exit_code() {
    initrd 'exit 3' # no kernel lives without its PID 1
    boot
    expect_status 3
    expect_err_has panic
}

test_keys_reach_the_console() {
    initrd 'echo "your name?"; read name; echo "hello $name"; poweroff -f'
    # What is typed before the driver is there is lost, as on any serial line.
    boot < <(eventually grep -q name "$T/.out"; echo Ondol)
    expect_status 0
    expect_out_has "hello Ondol"
}

test_the_console_can_be_a_file() {
    initrd 'echo hello; poweroff -f'
    boot --console log
    expect_status 0
    expect_out ""
    expect "the console in the file" grep -q hello log
}

test_disks_are_read_and_written() {
    truncate -s 16M disk other
    mke2fs -q -t ext4 disk
    initrd '
        mount /dev/vda /mnt && echo written >/mnt/file && umount /mnt
        mount -o ro /dev/vda /mnt && cat /mnt/file
        echo "read-only: $(cat /sys/block/vda/ro)$(cat /sys/block/vdb/ro)"
        dd if=/dev/zero of=/dev/vdb count=1 2>/dev/null || echo "vdb refused"
        sync; poweroff -f'
    boot --disk disk --disk other,ro
    expect_status 0
    expect_out_has written
    expect_out_has "read-only: 01"
    expect "the file on the disk" test "$(debugfs -R 'cat file' disk 2>/dev/null)" = written
    expect "no byte on the read-only disk" cmp other <(head -c 16M /dev/zero)
}

test_a_disk_that_another_process_serves_can_be_lost() {
    truncate -s 16M disk
    mke2fs -q -t ext4 disk
    qemu-storage-daemon --blockdev driver=file,node-name=disk,filename=disk \
        --export type=vhost-user-blk,id=export,node-name=disk,writable=on,num-queues=2,addr.type=unix,addr.path=socket &
    local daemon=$!
    eventually test -S socket
    initrd '
        mount /dev/vda /mnt && echo written >/mnt/file && umount /mnt && echo "written"
        echo "queues: $(ls /sys/block/vda/mq | wc -l)"
        for _ in 1 2 3 4 5 6 7 8; do
            sleep 1
            dd if=/dev/vda of=/dev/null bs=64k iflag=direct 2>/dev/null &
        done
        echo "still here"
        poweroff -nf'
    { eventually grep -qs queues console && kill -9 "$daemon"; } &
    ONGGI_LOG=error boot --cpus 2 --disk vhost-user=socket --console console
    expect_status 0
    expect_err_has "needs a reset"
    out=$(tr -d '\r' <console)
    expect_out_has "written"
    expect_out_has "queues: 2"
    expect_out_has "still here"
    expect "the file on the disk" test "$(debugfs -R 'cat file' disk 2>/dev/null)" = written
}

test_sigterm_presses_ctrl_alt_del() {
    initrd 'echo ready; sleep 1000'
    # Our own kernel has no keyboard; this one has, and reboots.
    run_and_terminate --kernel "$ONGGI_TEST_GUESTS/bzImage" --memory 256m
    expect_status 0
}

test_a_guest_that_does_not_follow_sigterm_is_ended() {
    initrd 'echo ready; sleep 1000'
    run_and_terminate --kernel "$KERNEL"
    expect_status 143
}

run_and_terminate() {
    # Each byte of a talkative kernel costs exits, thousands of them a second.
    "$ONGGI" boot "$@" --initrd initrd --cmdline 'console=ttyS0 quiet reboot=k panic=-1' \
        >log 2>&1 </dev/null &
    eventually grep -q ready log
    kill -TERM $!
    status=0 out='' err=''
    wait $! || status=$?
}

test_a_killed_monitor_leaves_nothing() {
    initrd 'echo ready; sleep 1000'
    export ONGGI_HOME=$T/home
    "$ONGGI" boot --kernel "$KERNEL" --initrd initrd --vsock 3,"$T/socket" --console log </dev/null &
    eventually grep -q ready log
    kill -KILL $!
    wait $! 2>/dev/null
    expect "no process of it" test -z "$(pgrep -f "$T/socket")"
    # The next one takes the socket's path over.
    initrd 'poweroff -f'
    boot --vsock 3,"$T/socket"
    expect_status 0
    expect "no socket left" test ! -e socket
}

test_firecrackers_configuration_boots_too() {
    initrd 'echo "cpus: $(nproc)"; cat /proc/cmdline; poweroff -f'
    cat >vm.json <<JSON
{ "boot-source": { "kernel_image_path": "$KERNEL", "initrd_path": "$T/initrd",
                   "boot_args": "console=ttyS0 quiet reboot=k panic=-1 mark" },
  "machine-config": { "vcpu_count": 2, "mem_size_mib": 128 } }
JSON
    run "$ONGGI" boot --config vm.json
    expect_status 0
    expect_out_has "cpus: 2"
    expect_out_has mark
}

test_devices_work_on_a_pci_bus() {
    truncate -s 16M disk
    mke2fs -q -t ext4 disk
    initrd '
        for device in /sys/bus/pci/devices/*; do
            echo "device: ${device##*/} $(cat "$device/vendor"):$(cat "$device/device")"
        done
        echo "functions: $(ls /sys/bus/virtio/drivers/*/ | grep -c "^virtio[0-9]")"
        mount /dev/vda /mnt && echo written >/mnt/file && umount /mnt
        mount -o ro /dev/vda /mnt && cat /mnt/file
        echo "random: $(cat /sys/class/misc/hw_random/rng_current)"
        head -c 8 /dev/hwrng | wc -c
        echo "messages: $(grep -c "PCI-MSI.*virtio" /proc/interrupts)"
        echo "taken: $(awk "/virtio.*req/ { n += \$2 + \$3 } END { print (n > 0) }" /proc/interrupts)"
        umount /mnt
        # Unbound and bound again: reset, and other vectors.
        echo virtio0 >/sys/bus/virtio/drivers/virtio_blk/unbind
        echo virtio0 >/sys/bus/virtio/drivers/virtio_blk/bind
        mount -o ro /dev/vda /mnt && echo "again: $(cat /mnt/file)"
        sync; reboot -f'
    boot --enable-pci --disk disk --cpus 2 --vsock 3,"$T/socket"
    expect_status 0
    expect_out_has "device: 0000:00:00.0 0x1b36:0x0008"
    expect_out_has "device: 0000:00:01.0 0x1af4:0x1042"
    expect_out_has "functions: 3"
    expect_out_has written
    expect_out_has "random: virtio_rng"
    # A disk has a vector for each of two queues and one for changes.
    expect "messages" grep -Eq 'messages: ([4-9]|1[0-9])' <<<"$out"
    expect_out_has "taken: 1"
    expect_out_has "again: written"
    expect "the file on the disk" test "$(debugfs -R 'cat file' disk 2>/dev/null)" = written
}

test_a_distribution_kernel_finds_the_pci_bus_by_ecam() {
    initrd 'dmesg | grep -E "MMCONFIG|ECAM|root bus resource"; ls /sys/bus/pci/devices; poweroff -f'
    KERNEL=$ONGGI_TEST_GUESTS/bzImage
    boot --memory 256m --enable-pci
    expect_status 0
    expect "the ECAM is believed" grep -Eq '(MMCONFIG|ECAM).*0xd8000000' <<<"$out"
    expect_out_has "0xe0000000-0xefffffff"
    expect_out_has 0000:00:01.0
}
