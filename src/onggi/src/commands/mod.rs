//! The commands for containers. Each finds what it is about on disk, and asks the process of its VM
//! where that has to do something.

mod attach;
mod copy;
pub mod create;
mod exec;
mod inspect;
mod list;
mod logs;
pub mod run;
mod spec;
mod stats;
mod stop;
pub mod system;
mod task;
pub mod vms;
pub mod volumes;

use std::io::{self, Write};

use crate::error::Failure;
use crate::output::print;

pub use attach::attach;
pub use copy::copy;
pub use exec::exec;
pub use inspect::inspect;
pub use list::{list, port};
pub use logs::logs;
pub use stats::{stats, top};
pub use stop::{kill, remove, rename, restart, stop, wait};

/// Does something to each of several things, prints what it returns, and goes on to the next after a
/// failure, to fail in the end.
pub fn each(
    names: &[String],
    mut act: impl FnMut(&str) -> Result<Option<String>, Failure>,
) -> Result<u8, Failure> {
    let mut failure: Option<Failure> = None;
    for name in names {
        match act(name) {
            Ok(Some(text)) => print(&format!("{text}\n"))?,
            Ok(None) => {}
            Err(error) => {
                if let Some(earlier) = failure.replace(error) {
                    let _ = writeln!(io::stderr(), "onggi: {earlier}");
                }
            }
        }
    }
    failure.map_or(Ok(0), Err)
}
