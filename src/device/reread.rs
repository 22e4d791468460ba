//! Makes the kernel read a disk's partition table again.

use rustix::ioctl::{NoArg, Opcode, ioctl, opcode};
use std::fs::File;

/// `_IO(0x12, 95)` of `linux/fs.h`.
const BLKRRPART: Opcode = opcode::none(0x12, 95);

/// Makes the kernel read the partition table of an open whole disk again.
///
/// # Errors
/// The system's: `BUSY` where a partition is in use, `INVAL` where the device has no partitions at all.
#[allow(unsafe_code)]
pub(super) fn reread_partitions(file: &File) -> rustix::io::Result<()> {
    // SAFETY: BLKRRPART is an ioctl of block devices that takes no argument and touches no memory of this process; on any
    // other file it fails. No crate in use wraps it, and a helper program ('blockdev') may be missing where this runs.
    unsafe { ioctl(file, NoArg::<BLKRRPART>::new()) }
}
