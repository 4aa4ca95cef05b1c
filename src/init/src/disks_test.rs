use super::*;

fn disks(serials: &[(&str, &str)]) -> (tempfile::TempDir, Disks) {
    let directory = tempfile::tempdir().unwrap();
    let [block, dev, mounts] = ["block", "dev", "mounts"].map(|name| directory.path().join(name));
    let disks = Disks::of(&block, &dev, &mounts);
    fs::create_dir(&disks.sys_block).unwrap();
    fs::create_dir(disks.sys_block.join("loop0")).unwrap();
    for (name, serial) in serials {
        fs::create_dir(disks.sys_block.join(name)).unwrap();
        fs::write(disks.sys_block.join(name).join("serial"), serial).unwrap();
    }
    (directory, disks)
}

#[test]
fn a_disk_is_found_by_its_serial_in_any_order() {
    let (_directory, disks) = disks(&[
        ("vda", "onggi-scratch\n"),
        ("vdb", "onggi-guest"),
        ("vdc", "onggi-layers"),
    ]);
    assert_eq!(disks.find(SCRATCH).unwrap(), "vda");
    assert_eq!(disks.find(LAYERS).unwrap(), "vdc");
}

fn layer(partition: u32) -> Layer {
    Layer {
        partition,
        start: 8,
        sectors: 8,
    }
}

#[test]
fn a_missing_disk_is_named() {
    let (_directory, mut disks) = disks(&[("vda", "onggi-scratch-2"), ("vdb", "")]);
    let failure = disks.scratch().unwrap_err();
    assert_eq!(failure.message, "there is no disk onggi-scratch");
    assert_eq!(failure.kind, FailureKind::Storage);
    assert_eq!(
        disks.layers(&[layer(1)]).unwrap_err().message,
        "there is no disk onggi-layers"
    );
    assert!(disks.layers(&[]).is_ok());
    let source = Source::Disk("data".into());
    assert_eq!(
        disks.acquire(&source).unwrap_err().message,
        "there is no disk data"
    );
    assert!(!disks.locate(&source).exists());
}

#[test]
fn a_missing_partition_is_named() {
    let (_directory, mut disks) = disks(&[("vda", "onggi-layers")]);
    let failure = disks.layers(&[layer(1)]).unwrap_err();
    assert!(
        failure
            .message
            .starts_with("layer 1 of the image can't be mounted: "),
        "{failure}"
    );
}

#[test]
fn partitions_are_named_as_linux_does() {
    assert_eq!(partition("vdb", 12), "vdb12");
    assert_eq!(partition("nvme0n1", 3), "nvme0n1p3");
}
