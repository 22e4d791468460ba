//! The delta format, version 1, as `spec/` defines it. Format only: no policy, no device.
//!
//! [`header`] and [`route`] are fixed tables; [`batch`] is the order, [`step`] the recipe, [`difference`] its differences, [`stream`] the compressed
//! columns both are kept in, [`literal`] writes deltas that read nothing, [`pack`] the form that streams have in small deltas;
//! [`memory`] is what patching takes, [`label`] a text that travels along. [`placement`] follows where old bytes lie while the order advances, and is what writer,
//! checker and patcher share. [`reader::Delta`] is a delta whose every byte has been checked.

pub mod batch;
pub mod check;
pub mod coding;
pub mod difference;
pub mod error;
pub mod header;
pub mod label;
pub mod literal;
pub mod memory;
pub mod pack;
pub mod placement;
pub mod reader;
pub mod route;
pub mod scratch;
pub mod step;
pub mod step_reader;
pub mod stream;
pub mod text;
pub mod writer;

pub use error::DeltaError;
pub use reader::Delta;

/// Reads little-endian fields from a slice whose length was checked; the position moves on.
pub(crate) struct Fields<'a>(pub &'a [u8]);

impl Fields<'_> {
    /// The next `N` bytes; zeros past the end (callers check the length first).
    pub fn take<const N: usize>(&mut self) -> [u8; N] {
        let mut out = [0; N];
        let n = N.min(self.0.len());
        let (head, rest) = self.0.split_at(n);
        out[..n].copy_from_slice(head);
        self.0 = rest;
        out
    }
    pub fn u8(&mut self) -> u8 {
        u8::from_le_bytes(self.take())
    }
    pub fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.take())
    }
    pub fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take())
    }
    pub fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.take())
    }
}
