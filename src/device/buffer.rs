//! A buffer whose start is aligned as O_DIRECT wants it, without `unsafe`: over-allocate and skip.

/// Alignment in bytes; no logical block size in use today is larger.
pub(super) const ALIGN: usize = 4096;

/// A byte buffer that starts at a multiple of 4096.
#[derive(Debug, Default)]
pub struct AlignedBuffer {
    store: Vec<u8>,
    start: usize,
    len: usize,
}

impl AlignedBuffer {
    /// `len` zero bytes.
    #[must_use]
    pub fn new(len: usize) -> Self {
        let mut buffer = Self::default();
        buffer.resize(len);
        buffer
    }

    /// Changes the length; the content is unspecified afterwards. Memory is kept for the next use.
    pub fn resize(&mut self, len: usize) {
        if self.store.len() < len + ALIGN {
            self.store = vec![0; len + ALIGN];
            self.start = self.store.as_ptr().align_offset(ALIGN).min(ALIGN);
        }
        self.len = len;
    }
}

impl std::ops::Deref for AlignedBuffer {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.store[self.start..self.start + self.len]
    }
}

impl std::ops::DerefMut for AlignedBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.store[self.start..self.start + self.len]
    }
}

/// Whether a slice starts at the alignment that direct I/O needs.
pub(super) fn is_aligned(data: &[u8]) -> bool {
    (data.as_ptr() as usize).is_multiple_of(ALIGN)
}
