//! Capabilities by name (`linux/capability.h`).

/// All that there are, by number.
const NAMES: [&str; 41] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

/// A set of capabilities, a bit each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities(u64);

impl Capabilities {
    /// All that there are.
    pub const ALL: Self = Self((1 << NAMES.len()) - 1);

    /// The set of those names.
    ///
    /// # Errors
    /// The first name that is none.
    pub fn of(names: &[String]) -> Result<Self, &str> {
        let mut set = 0;
        for name in names {
            let number = NAMES
                .iter()
                .position(|known| known == name)
                .ok_or(name.as_str())?;
            set |= 1 << number;
        }
        Ok(Self(set))
    }

    /// The bits.
    #[must_use]
    pub fn bits(self) -> u64 {
        self.0
    }

    /// The numbers of those that are not in the set, be they of a newer kernel.
    pub fn absent(self) -> impl Iterator<Item = u32> {
        (0..u64::BITS).filter(move |number| self.0 & (1 << number) == 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_bits() {
        let names = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(Capabilities::of(&[]).unwrap().bits(), 0);
        let some = names(&["CAP_CHOWN", "CAP_SETPCAP", "CAP_CHECKPOINT_RESTORE"]);
        let set = Capabilities::of(&some).unwrap();
        assert_eq!(set.bits(), 1 | 1 << 8 | 1 << 40);
        assert!(set.absent().eq((1..8).chain(9..40).chain(41..64)));
        assert_eq!(Capabilities::ALL.absent().next(), Some(41));
        for wrong in ["CAP_", "chown", "CHOWN", "cap_chown", ""] {
            assert_eq!(Capabilities::of(&names(&["CAP_KILL", wrong])), Err(wrong));
        }
    }
}
