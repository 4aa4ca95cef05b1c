//! `onggi disk`: files that are disks.

use onggi_storage::{DiskError, OverlayInfo, create_overlay, overlay_info};

use crate::cli::DiskCommand;
use crate::devices;
use crate::error::Failure;
use crate::output;

/// Runs `onggi disk` and returns the exit status.
pub fn run(command: &DiskCommand) -> Result<u8, Failure> {
    match command {
        DiskCommand::Create(args) => {
            let len = args.size.map(|size| size.0);
            create_overlay(&args.top, &args.base, len).map_err(failure)?;
        }
        DiskCommand::Info(args) => {
            let info = overlay_info(&args.top).map_err(failure)?;
            output::print(&describe(&info))?;
        }
    }
    Ok(0)
}

fn failure(error: DiskError) -> Failure {
    devices::Error::Disk(error).into()
}

fn describe(info: &OverlayInfo) -> String {
    format!(
        "format:   overlay\nlength:   {} bytes\nbase:     {} bytes\nwritten:  {} clusters of {} bytes\n",
        info.len, info.base_len, info.written, info.cluster
    )
}
