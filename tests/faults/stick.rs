//! The stick with the delta on it fails.

use crate::errors::assert_row;
use crate::{delta_of, noise, pair, patch};
use blkpatch::delta::Delta;
use blkpatch::delta::check::check_order;
use blkpatch::delta::stream::ReadAt;
use blkpatch::device::MemoryDevice;
use blkpatch::error::exit;
use blkpatch::patch::Opened;
use blkpatch::target::Verify;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A delta on a medium of which one read fails.
struct FlakyStick {
    bytes: Vec<u8>,
    reads: AtomicUsize,
    fails: usize,
}

impl ReadAt for FlakyStick {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        if self.reads.fetch_add(1, Ordering::Relaxed) + 1 == self.fails {
            return Err(io::Error::from_raw_os_error(5));
        }
        // Short reads, too.
        let len = buffer.len().min(40_001);
        ReadAt::read_at(&self.bytes, &mut buffer[..len], offset)
    }
    fn size(&self) -> io::Result<u64> {
        Ok(self.bytes.len() as u64)
    }
}

#[test]
fn a_delta_that_can_no_longer_be_read() {
    // So large that the literals of later batches are read after the first ones were written.
    let (old, new) = pair(0);
    let (old, new) = ([&old[..], &noise(3, 3 << 20)].concat(), [&new[..], &noise(4, 3 << 20)].concat());
    let (folder, good) = delta_of(&old, &new);
    let bytes = std::fs::read(folder.path().join("delta")).expect("the delta");
    let (mut at_once, mut stopped) = (0, 0);
    for fails in 1.. {
        let stick = Arc::new(FlakyStick { bytes: bytes.clone(), reads: AtomicUsize::new(0), fails });
        let device = MemoryDevice::new(old.clone(), false);
        let opened = Delta::open(stick.clone(), 1 << 30)
            .and_then(|delta| check_order(&delta).map(|order| Opened { delta, order }));
        match opened {
            Err(e) => {
                assert!(e.to_string().contains("os error 5"), "read {fails}: {e}");
                at_once += 1;
                continue;
            }
            Ok(opened) => match patch(&opened, &device, Verify::Full) {
                Ok(_) => {
                    assert!(stick.reads.load(Ordering::Relaxed) < fails, "read {fails} failed, and nobody saw it");
                    break;
                }
                Err(e) => {
                    assert!(e.to_string().contains("os error 5"), "read {fails}: {e}");
                    match e.exit_code() {
                        exit::REFUSED => {
                            assert!(device.contents() == old, "read {fails}: {e}");
                        }
                        code => {
                            stopped += 1;
                            assert_eq!(code, exit::STOPPED, "read {fails}: {e}");
                            assert_row(&e.to_string(), "stopped-delta");
                        }
                    }
                }
            },
        }
        patch(&good, &device, Verify::Full).unwrap_or_else(|e| panic!("read {fails}: run again: {e}"));
        assert!(device.contents() == new, "read {fails}: another image");
    }
    assert!(at_once > 10 && stopped > 0, "{at_once} {stopped}");
}
