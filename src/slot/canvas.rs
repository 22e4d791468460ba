//! Where the new image is built: writes what is not there already, and nothing else.

use crate::device::{AlignedBuffer, Device, DeviceError};
use crate::digest::{ZERO_PART, is_zero};
use crate::monitor::Monitor;
use crate::units::BLOCK;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// Bytes of what is there that are read at once, by each thread; what is written at once may be more.
const LOOK: usize = 256 << 10;

/// A device, or a new file, on which the new image is built. Several threads may do so, each at its own place.
pub(crate) struct Canvas<'a> {
    device: &'a dyn Device,
    blank: bool,
    /// Whether it is the target itself.
    seen: bool,
    monitor: &'a dyn Monitor,
    began: AtomicBool,
    written: AtomicU64,
    /// Buffers for what is there, to be used again.
    spare: Mutex<Vec<AlignedBuffer>>,
}

impl<'a> Canvas<'a> {
    /// On a device that holds anything.
    pub fn new(device: &'a dyn Device, monitor: &'a dyn Monitor) -> Self {
        let (began, written) = (AtomicBool::new(false), AtomicU64::new(0));
        Self { device, blank: false, seen: true, monitor, began, written, spare: Mutex::default() }
    }

    /// On something that nobody sees yet, and that reads as what is below it: no target is changed.
    pub fn unseen(device: &'a dyn Device, monitor: &'a dyn Monitor) -> Self {
        Self { seen: false, ..Self::new(device, monitor) }
    }

    /// On a file that nobody sees yet, and that is one hole: what is zero stays so.
    pub fn blank(device: &'a dyn Device, monitor: &'a dyn Monitor) -> Self {
        Self { blank: true, ..Self::unseen(device, monitor) }
    }

    /// What it is built on.
    pub fn device(&self) -> &'a dyn Device {
        self.device
    }

    /// Whether zeros are there where nothing was put.
    pub fn is_blank(&self) -> bool {
        self.blank
    }

    /// Whether anything was changed, or may have been: a write was asked for.
    pub fn began(&self) -> bool {
        self.began.load(Ordering::SeqCst)
    }

    /// Bytes written.
    pub fn written(&self) -> u64 {
        self.written.load(Ordering::SeqCst)
    }

    /// Makes `want` be there from `offset` on, where a block starts. Blocks that are there already are not written.
    ///
    /// # Errors
    /// Where writing fails.
    pub fn put(&self, offset: u64, want: &[u8]) -> Result<(), DeviceError> {
        let mut buffer = self.spare().pop().unwrap_or_default();
        let mut runs = Vec::new();
        for (i, piece) in want.chunks(LOOK).enumerate() {
            let have = self.look(offset + (i * LOOK) as u64, piece.len(), &mut buffer);
            add_missing_runs(&mut runs, i * LOOK, have, piece);
        }
        self.spare().push(buffer);
        runs.into_iter().try_for_each(|run| self.write(offset + run.start as u64, &want[run]))
    }

    fn spare(&self) -> std::sync::MutexGuard<'_, Vec<AlignedBuffer>> {
        self.spare.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is there, at most [`LOOK`] bytes. `None` where it cannot be read: it is not needed, and writing may mend it.
    fn look<'b>(&self, offset: u64, len: usize, buffer: &'b mut AlignedBuffer) -> Option<&'b [u8]> {
        if self.blank {
            return ZERO_PART.get(..len);
        }
        buffer.resize(len);
        self.device.read(offset, buffer).is_ok().then_some(&buffer[..])
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), DeviceError> {
        // What nobody sees yet is no change to a target.
        if !self.began.swap(true, Ordering::SeqCst) && self.seen {
            self.monitor.writing();
        }
        if is_zero(bytes) {
            self.device.write_zeros(offset, bytes.len() as u64)?;
        } else {
            self.device.write(offset, bytes)?;
        }
        self.written.fetch_add(bytes.len() as u64, Ordering::SeqCst);
        Ok(())
    }
}

/// Adds the runs of blocks of `want`, which stands at byte `at`, that differ from what is there; all of it where that is
/// not known.
fn add_missing_runs(runs: &mut Vec<Range<usize>>, at: usize, have: Option<&[u8]>, want: &[u8]) {
    const BYTES: usize = BLOCK as usize;
    for (i, want) in want.chunks(BYTES).enumerate() {
        let start = at + i * BYTES;
        if have.and_then(|have| have.get(i * BYTES..i * BYTES + want.len())) == Some(want) {
            continue;
        }
        match runs.last_mut() {
            Some(run) if run.end == start => run.end += want.len(),
            _ => runs.push(start..start + want.len()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::MemoryDevice;
    use crate::monitor::Silent;

    const B: usize = BLOCK as usize;

    #[test]
    fn runs_are_what_differs_in_whole_blocks() {
        let have = vec![1; 5 * B + 100];
        let mut want = have.clone();
        let runs_after = |before: &[Range<usize>], at, have: Option<&[u8]>, want: &[u8]| {
            let mut runs = before.to_vec();
            add_missing_runs(&mut runs, at, have, want);
            runs
        };
        assert!(runs_after(&[], 0, Some(&have), &want).is_empty());
        for at in [B, 3 * B - 1, 5 * B + 99] {
            want[at] = 2;
        }
        let runs = runs_after(&[], 0, Some(&have), &want);
        assert_eq!(runs, [B..3 * B, 5 * B..5 * B + 100]);
        assert_eq!(runs_after(&[], 7 * B, None, &want), [7 * B..7 * B + want.len()]);
        // They go on from one piece to the next.
        assert_eq!(runs_after(&[0..B, 2 * B..3 * B], 3 * B, Some(&have), &have[..1]), [0..B, 2 * B..3 * B]);
        assert_eq!(runs_after(&[2 * B..3 * B], 3 * B, None, &want[..9]), [2 * B..3 * B + 9]);
        assert!(runs_after(&[], 0, Some(&[]), &[]).is_empty());
    }

    #[test]
    fn only_what_differs_is_written_and_only_then_has_it_begun() {
        let len = 4 * LOOK + 3 * B;
        let mut image: Vec<u8> = (0..len + B).map(|i| (i / B) as u8).collect();
        let device = MemoryDevice::new(image.clone(), false);
        let canvas = Canvas::new(&device, &Silent);
        canvas.put(B as u64, &image[B..len]).unwrap();
        assert!(!canvas.began() && canvas.written() == 0);
        // The last block is short.
        for at in [5 * B, len - B - 1, len - 8] {
            image[at] ^= 0xFF;
        }
        canvas.put(B as u64, &image[B..len - 7]).unwrap();
        assert_eq!((canvas.began(), canvas.written()), (true, 3 * B as u64 - 7));
        assert_eq!(device.contents(), image);
    }

    #[test]
    fn nothing_is_written_for_zeros_on_a_blank_one() {
        let device = MemoryDevice::new(vec![0; 4 * B], true);
        let canvas = Canvas::blank(&device, &Silent);
        let mut image = vec![0; 4 * B];
        canvas.put(0, &image).unwrap();
        assert!(!canvas.began());
        image[2 * B] = 1;
        canvas.put(0, &image).unwrap();
        assert_eq!((device.contents(), canvas.written()), (image, B as u64));
    }
}
