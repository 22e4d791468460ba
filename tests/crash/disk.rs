//! A simulated disk with a volatile cache. What the media assumption of the spec allows, it does: before a sync any
//! subset of the 512-byte sectors written may have landed; a completed sync is durable; other sectors do not change.

use blkpatch::device::{Device, DeviceError};
use std::io;
use std::sync::Mutex;

pub const SECTOR: usize = 512;

/// What the power loss prevented.
#[derive(Clone, Debug)]
pub enum Cut {
    /// A sector: its content, and where it was to be written.
    Write(usize, Vec<u8>),
    Sync,
    Resize,
    /// The next operation that changes something, but a read came before it.
    Read,
}

#[derive(Debug, Default)]
struct Inside {
    /// What the medium holds for certain.
    durable: Vec<u8>,
    /// What reads see: durable content and everything written since.
    visible: Vec<u8>,
    /// Sectors written since the last sync, in order: (first byte, content).
    pending: Vec<(usize, Vec<u8>)>,
    /// Operations that change something (writes, syncs) left before the power goes; `None`: it stays.
    fuse: Option<usize>,
    operations: usize,
    cut: Option<Cut>,
    resizable: bool,
}

/// The disk.
#[derive(Debug)]
pub struct Disk(Mutex<Inside>);

impl Disk {
    pub fn new(content: Vec<u8>, resizable: bool) -> Self {
        Self(Mutex::new(Inside { durable: content.clone(), visible: content, resizable, ..Inside::default() }))
    }

    /// The power goes before the `n`-th operation from now that changes something.
    pub fn light_fuse(&self, n: Option<usize>) {
        self.0.lock().unwrap().fuse = n;
    }

    pub fn operations(&self) -> usize {
        self.0.lock().unwrap().operations
    }

    /// What the power loss prevented first; `None`: nothing.
    pub fn cut(&self) -> Option<Cut> {
        self.0.lock().unwrap().cut.clone()
    }

    pub fn unsynced(&self) -> usize {
        self.0.lock().unwrap().pending.len()
    }

    pub fn contents(&self) -> Vec<u8> {
        self.0.lock().unwrap().visible.clone()
    }

    /// The power comes back; `keep` says of each unsynced sector write, in order, whether it landed, and of
    /// `usize::MAX` whether an unsynced length did.
    pub fn power_up(&self, mut keep: impl FnMut(usize) -> bool) -> Disk {
        let inside = self.0.lock().unwrap();
        let mut content = inside.durable.clone();
        if content.len() != inside.visible.len() && keep(usize::MAX) {
            content.resize(inside.visible.len(), 0);
        }
        for (i, (at, sector)) in inside.pending.iter().enumerate() {
            if at + sector.len() <= content.len() && keep(i) {
                content[*at..*at + sector.len()].copy_from_slice(sector);
            }
        }
        Disk::new(content, inside.resizable)
    }
}

fn dead(operation: &'static str, offset: u64) -> DeviceError {
    DeviceError { operation, name: "disk".into(), offset, len: 0, source: io::Error::other("no power") }
}

impl Inside {
    fn burn(&mut self, offset: usize, what: impl FnOnce() -> Cut) -> Result<(), DeviceError> {
        self.operations += 1;
        match &mut self.fuse {
            Some(0) => {
                self.cut.get_or_insert_with(what);
                Err(dead("changing", offset as u64))
            }
            Some(n) => {
                *n -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }
}

impl Device for Disk {
    fn name(&self) -> String {
        "disk".into()
    }

    fn len(&self) -> u64 {
        self.0.lock().unwrap().visible.len() as u64
    }

    fn resizable(&self) -> bool {
        self.0.lock().unwrap().resizable
    }

    fn set_len(&self, len: u64) -> Result<(), DeviceError> {
        let mut inside = self.0.lock().unwrap();
        inside.burn(len as usize, || Cut::Resize)?;
        inside.visible.resize(len as usize, 0);
        inside.pending.retain(|(at, sector)| at + sector.len() <= len as usize);
        Ok(())
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), DeviceError> {
        let mut inside = self.0.lock().unwrap();
        if inside.fuse == Some(0) {
            inside.cut.get_or_insert(Cut::Read);
            return Err(dead("reading", offset));
        }
        let at = offset as usize;
        buffer.copy_from_slice(inside.visible.get(at..at + buffer.len()).ok_or_else(|| dead("reading", offset))?);
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), DeviceError> {
        let mut inside = self.0.lock().unwrap();
        let at = offset as usize;
        assert!(at + data.len() <= inside.visible.len(), "a write outside the image");
        let mut start = at;
        while start < at + data.len() {
            // Each sector is an operation: the power may go between any two.
            let end = ((start / SECTOR + 1) * SECTOR).min(at + data.len());
            let sector = data[start - at..end - at].to_vec();
            inside.burn(start, || Cut::Write(start, sector.clone()))?;
            inside.visible[start..end].copy_from_slice(&sector);
            inside.pending.push((start, sector));
            start = end;
        }
        Ok(())
    }

    fn write_zeros(&self, offset: u64, len: u64) -> Result<(), DeviceError> {
        self.write(offset, &vec![0; len as usize])
    }

    fn sync(&self) -> Result<(), DeviceError> {
        let mut inside = self.0.lock().unwrap();
        inside.burn(0, || Cut::Sync)?;
        inside.pending.clear();
        inside.durable = inside.visible.clone();
        Ok(())
    }

    fn forget_cache(&self) -> Result<(), DeviceError> {
        Ok(())
    }
}
