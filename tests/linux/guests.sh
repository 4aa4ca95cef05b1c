# shellcheck shell=bash
# Linux guests that consist of our kernel and a script.

KERNEL=$ONGGI_ASSETS/vmlinux-x86_64

# initrd SCRIPT: an initramfs, ./initrd, whose PID 1 mounts the usual and runs it.
initrd() {
    mkdir -p tree/{bin,dev,proc,sys,mnt}
    cp "$ONGGI_TEST_GUESTS/busybox" tree/bin/busybox
    {
        echo '#!/bin/busybox sh'
        echo '/bin/busybox mkdir -p /sbin /usr/bin /usr/sbin; /bin/busybox --install -s'
        echo 'mount -t devtmpfs dev /dev; mount -t proc proc /proc; mount -t sysfs sys /sys'
        printf '%s\n' "$1"
    } >tree/init
    chmod +x tree/init
    pack
}

# pack: makes ./initrd of ./tree anew.
pack() {
    (cd tree && find . | "$ONGGI_TEST_GUESTS/busybox" cpio -o -H newc 2>/dev/null) >initrd
}
