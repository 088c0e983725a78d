//! Which kernel modules the boot needs: the initramfs lists them in load order.

use std::ffi::CStr;
use std::fs;
use std::io;
use std::os::fd::AsRawFd;

use crate::report::BootReport;

/// One path of an uncompressed module per line.
const LIST: &str = "/banger/modules.load";

/// Loads all modules. One that fails is a warning: the disk or interface that needs it says
/// so more clearly if it does not appear.
pub(super) fn load(report: &mut BootReport) {
    let Ok(list) = fs::read_to_string(LIST) else {
        return;
    };
    for path in list.lines().map(str::trim).filter(|line| !line.is_empty()) {
        if let Err(error) = load_one(path) {
            report
                .warnings
                .push(format!("could not load the module {path}: {error}"));
        }
    }
}

fn load_one(path: &str) -> io::Result<()> {
    const NO_PARAMETERS: &CStr = c"";
    let file = fs::File::open(path)?;
    // SAFETY: the descriptor is open and the parameters are a C string during the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_finit_module,
            file.as_raw_fd(),
            NO_PARAMETERS.as_ptr(),
            0,
        )
    };
    match result {
        0 => Ok(()),
        _ => match io::Error::last_os_error() {
            error if error.raw_os_error() == Some(libc::EEXIST) => Ok(()),
            error => Err(error),
        },
    }
}
