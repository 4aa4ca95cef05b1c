# shellcheck shell=bash
# What cannot work is refused with one clear sentence, and nothing is left.

TINY=oci:$ONGGI_TEST_IMAGES/tiny:latest

# refused ARG...: onggi fails by its own, says one thing, and does not panic.
refused() {
    run "$ONGGI" "$@"
    expect_status 125
    expect_out ""
    expect_err_has "onggi: "
    expect "no panic" test "${err/panicked/}" = "$err"
    expect "a sentence and a hint at most" test "$(wc -l <<<"$err")" -le 2
}

test_images_that_are_not_there() {
    refused run "oci:$T/nowhere" true
    expect_err_has nowhere
    refused run "oci:$ONGGI_TEST_IMAGES/tiny:no-such-tag" true
    expect_err_has no-such-tag
    refused run "docker-archive:$T/nowhere.tar" true
    refused run --pull never never-seen true
}

test_images_that_are_none() {
    mkdir layout && echo '{}' >layout/index.json
    refused run "oci:$T/layout" true
    head -c 100000 /dev/urandom >archive.tar
    refused run "docker-archive:$T/archive.tar" true
}

test_a_layer_that_is_not_what_its_digest_says() {
    cp -r "$ONGGI_TEST_IMAGES/tiny" layout
    local largest
    largest=$(find layout/blobs/sha256 -type f -printf '%s %p\n' | sort -n | tail -n 1 | cut -d' ' -f2)
    printf 'x' | dd of="$largest" bs=1 seek=1000 conv=notrunc 2>/dev/null
    export ONGGI_HOME=$T/home
    refused run "oci:$T/layout:latest" true
    run "$ONGGI" images --quiet
    expect_out ""
}

test_flags_that_make_no_sense() {
    refused run --frob "$TINY"
    expect_err_has "unknown flag: --frob"
    refused run --cpus 0 "$TINY"
    refused run --memory lots "$TINY"
    refused run --name '../up' "$TINY" true
    refused run
}

test_memory_that_no_vm_can_have() {
    refused run --memory 0 "$TINY" true
    refused run --memory 4194304g "$TINY" true
}

test_a_host_without_kvm() {
    run unshare --mount sh -c "mount -t tmpfs none /dev && mknod /dev/null c 1 3 &&
        mknod /dev/urandom c 1 9 && $ONGGI run $TINY true"
    expect_status 125
    expect_err_has /dev/kvm
    : >"$T/no-kvm"
    run unshare --mount sh -c "mount --bind $T/no-kvm /dev/kvm && $ONGGI run $TINY true"
    expect_status 125
    expect_err_has KVM
}

test_kernels_that_are_none() {
    refused boot --kernel "$T/nowhere"
    echo text >text
    refused boot --kernel "$T/text"
    head -c 5000 "$ONGGI_ASSETS/vmlinux-x86_64" >truncated
    refused boot --kernel "$T/truncated"
}

test_assets_that_are_missing() {
    ONGGI_ASSETS=$T refused run "$TINY" true
    expect_err_has "$T"
}

test_a_home_that_is_full() {
    mkdir home
    mount -t tmpfs -o size=64k none home || exit
    export ONGGI_HOME=$T/home
    run "$ONGGI" run "$TINY" true
    umount home
    expect_status 125
    expect_err_has "no space is left"
}
