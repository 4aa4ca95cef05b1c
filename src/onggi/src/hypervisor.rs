//! What to do about the errors of the VM monitor, and the check that KVM is there at all.

use std::fs::OpenOptions;
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileTypeExt;

use onggi_vmm::Error;

use crate::error::{Explain, io_kind};

/// The device that VMs are made with.
const KVM: &str = "/dev/kvm";

/// Checks that `/dev/kvm` can be used, before an image is fetched or anything else is found wrong:
/// nothing helps where it can't.
///
/// # Errors
/// [`Error::OpenKvm`].
pub fn check() -> Result<(), Error> {
    let device = OpenOptions::new().read(true).write(true).open(KVM);
    match device.and_then(|device| device.metadata()) {
        Ok(metadata) if metadata.file_type().is_char_device() => Ok(()),
        Ok(_) => Err(Error::OpenKvm(io::Error::other(
            "it is not the device of KVM",
        ))),
        Err(error) => Err(Error::OpenKvm(error)),
    }
}

impl Explain for Error {
    fn hint(&self) -> Option<String> {
        match (self, io_kind(self)) {
            (Error::OpenKvm(_), Some(ErrorKind::PermissionDenied)) => Some(
                "join the group 'kvm' (sudo usermod -aG kvm \"$USER\") and log in again".to_owned(),
            ),
            (Error::OpenKvm(_), _) => Some(
                "load the module kvm_intel or kvm_amd; virtualization must be enabled in the \
                 firmware, or nested virtualization in the VM that this is"
                    .to_owned(),
            ),
            (Error::Memory(_), Some(ErrorKind::OutOfMemory)) => {
                Some("ask for less with --memory".to_owned())
            }
            _ => None,
        }
    }
}
