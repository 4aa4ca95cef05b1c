//! Makes tars for tests, well-formed and not.

use tar::Header;

/// A tar in memory.
#[derive(Default, Clone)]
pub(crate) struct TestTar(pub(crate) Vec<u8>);

impl TestTar {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Any entry; the header can be changed before its checksum is made.
    pub(crate) fn entry(
        mut self,
        kind: u8,
        path: &str,
        data: &[u8],
        change: impl FnOnce(&mut Header),
    ) -> Self {
        let mut header = Header::new_gnu();
        header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
        header.as_old_mut().linkflag = [kind];
        header.set_size(data.len() as u64);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_700_000_000);
        change(&mut header);
        header.set_cksum();
        self.0.extend(header.as_bytes());
        self.0.extend(data);
        self.pad();
        self
    }

    pub(crate) fn pad(&mut self) {
        self.0.resize(self.0.len().next_multiple_of(512), 0);
    }

    pub(crate) fn file(self, path: &str, data: &[u8]) -> Self {
        self.entry(b'0', path, data, |_| {})
    }

    pub(crate) fn directory(self, path: &str) -> Self {
        self.entry(b'5', path, b"", |header| header.set_mode(0o755))
    }

    pub(crate) fn symlink(self, path: &str, target: &str) -> Self {
        self.entry(b'2', path, b"", |header| {
            header.set_link_name_literal(target).unwrap()
        })
    }

    pub(crate) fn hard_link(self, path: &str, target: &str) -> Self {
        self.entry(b'1', path, b"", |header| {
            header.set_link_name_literal(target).unwrap()
        })
    }

    /// An extended header for the entry that follows.
    pub(crate) fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let mut data = Vec::new();
        for (key, value) in records {
            let body = key.len() + value.len() + 3;
            let mut length = body;
            while length != body + length.to_string().len() {
                length = body + length.to_string().len();
            }
            data.extend(format!("{length} {key}=").as_bytes());
            data.extend(*value);
            data.push(b'\n');
        }
        self.entry(b'x', "PaxHeaders/x", &data, |_| {})
    }

    /// The archive with its end.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        self.0
    }
}
