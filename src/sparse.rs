//! Writes images to files in which zeros are holes.

use crate::digest::{ZERO_BLOCK, is_zero};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Writes the blocks that are not zero to a file that is zero there; its length may have to be set afterwards.
pub(crate) fn write_data(file: &File, offset: u64, bytes: &[u8]) -> io::Result<()> {
    let mut at = 0;
    while at < bytes.len() {
        let block = |at: usize| &bytes[at..bytes.len().min(at + ZERO_BLOCK.len())];
        let mut end = at;
        while end < bytes.len() && !is_zero(block(end)) {
            end += block(end).len();
        }
        file.write_all_at(&bytes[at..end], offset + at as u64)?;
        at = end + ZERO_BLOCK.len();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::BLOCK;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn only_data_is_written() {
        let file = tempfile::tempfile().unwrap();
        let mut bytes = vec![0; 10 * BLOCK as usize + 5];
        for at in [3, 4, 6, 10] {
            bytes[at * BLOCK as usize + 4] = at as u8;
        }
        write_data(&file, 1 << 20, &bytes).unwrap();
        let mut seen = vec![1; bytes.len()];
        file.read_exact_at(&mut seen, 1 << 20).unwrap();
        assert_eq!(seen, bytes);
        assert!(file.metadata().unwrap().blocks() * 512 <= 5 * BLOCK, "{}", file.metadata().unwrap().blocks());
    }
}
