//! The blocks of a signature, ready to be looked for at any byte offset, in memory that is known beforehand.
//!
//! fast_rsync's index takes some 50 to 100 bytes a block, also of those that are zero, and most of an image may be zero. But
//! zeros are never looked for. So only the other blocks are indexed, with a table of where they stand in the image.

use crate::signature::{SignatureError, SignatureFile};
use fast_rsync::{IndexedSignature, Signature};

/// Bytes of a bucket of the index's hash table: a weak checksum, a reference to a strong one, a number, a control byte.
const BUCKET: u64 = 33;
/// Bytes more of each of several blocks with the same weak checksum, which are in tables of their own.
const COLLISION: u64 = 96;

/// Blocks worth looking for.
pub(crate) struct Sought {
    signature: Signature,
    /// Which block of the image each is.
    numbers: Vec<u32>,
    /// Bytes of each.
    pub block_len: u64,
}

impl Sought {
    /// The whole blocks of a signature that are not zero; none, if they are longer than the `longest` bytes in which they
    /// would be looked for.
    ///
    /// # Errors
    /// Where signature and index would need more than `memory` bytes.
    pub fn new(signature: &SignatureFile, longest: u64, memory: u64) -> Result<Self, SignatureError> {
        let (shape, block_len) = (signature.shape, u64::from(signature.shape.block_len));
        let mut bytes = shape.header().to_vec();
        let mut numbers = Vec::new();
        if block_len <= longest {
            let zero = shape.entries(&vec![0; shape.block_len as usize]);
            // A last block that is shorter is never found. Only a forged entry would be, as a whole block, which the image
            // does not have there.
            let whole = signature.image.map_or(u64::MAX, |image| image.len / block_len);
            let is_wanted = |(entry, number): &(&[u8], u64)| *entry != zero && *number < whole;
            let wanted = || signature.entries().chunks_exact(shape.entry()).zip(0u64..).filter(is_wanted);
            let count = wanted().count() as u64;
            let needed = signature.memory() + index_memory(count, shape.entry() as u64);
            if needed > memory || signature.blocks() > u64::from(u32::MAX) {
                return Err(SignatureError::Memory { needed, memory });
            }
            bytes.reserve_exact(count as usize * shape.entry());
            numbers.reserve_exact(count as usize);
            for (entry, number) in wanted() {
                bytes.extend_from_slice(entry);
                numbers.push(number as u32);
            }
        }
        let signature =
            Signature::deserialize(bytes).map_err(|_| SignatureError::Malformed("its length does not fit"))?;
        Ok(Self { signature, numbers, block_len })
    }

    /// For fast_rsync.
    pub fn index(&self) -> IndexedSignature<'_> {
        self.signature.index()
    }

    /// Where in the image the blocks lie that the index has found as `[offset, offset + len)`, one after the other.
    /// `None` for what is not in the index.
    pub fn places(&self, offset: u64, len: u64) -> Option<impl Iterator<Item = u64> + '_> {
        let (first, count) = (offset / self.block_len, len / self.block_len);
        let numbers = self.numbers.get(usize::try_from(first).ok()?..usize::try_from(first + count).ok()?)?;
        Some(numbers.iter().map(|number| u64::from(*number) * self.block_len))
    }
}

/// The most that the index of `count` blocks takes: their entries and numbers, the hash table, which is twice there
/// while it is shrunk, and the tables for equal weak checksums.
fn index_memory(count: u64, entry: u64) -> u64 {
    let buckets = (count * 8 / 7 + 1).next_power_of_two();
    count * (entry + 4 + COLLISION) + buckets * BUCKET * 3 / 2
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::ImageId;
    use crate::signature::{HEADER, Shape};

    fn signature(shape: Shape, image: &[u8]) -> SignatureFile {
        SignatureFile::parse([&shape.header()[..], &shape.entries(image)].concat()).unwrap()
    }

    #[test]
    fn zeros_take_no_memory_and_the_rest_is_found_where_it_is() {
        let shape = Shape { block_len: 512, strong_len: 8 };
        let mut image = vec![0; 100_000 * 512];
        for block in [3, 70_000, 70_001] {
            image[block * 512..(block + 1) * 512].fill(block as u8 + 1);
        }
        let file = signature(shape, &image);
        let sought = Sought::new(&file, 4096, 2 << 20).unwrap();
        assert_eq!(sought.numbers, [3, 70_000, 70_001]);
        let places = |offset, len| sought.places(offset, len).map(|places| places.collect::<Vec<_>>());
        assert_eq!(places(512, 1024), Some(vec![70_000 * 512, 70_001 * 512]));
        assert_eq!(places(1024, 1024), None);
        let short = file.memory() + index_memory(3, 12) - 1;
        assert!(matches!(Sought::new(&file, 4096, short), Err(SignatureError::Memory { .. })));
    }

    #[test]
    fn a_short_last_block_is_not_taken_for_a_whole_one() {
        let shape = Shape { block_len: 512, strong_len: 8 };
        let mut file = signature(shape, &[7; 3 * 512]);
        for (len, found) in [(3 * 512, &[0, 1, 2][..]), (3 * 512 - 1, &[0, 1]), (2 * 512 + 1, &[0, 1])] {
            file.image = Some(ImageId { len, crc: 0, blake3: [0; 32] });
            assert_eq!(Sought::new(&file, 4096, 1 << 20).unwrap().numbers, found, "{len} bytes");
        }
    }

    #[test]
    fn blocks_that_cannot_be_found_are_not_indexed() {
        let shape = Shape { block_len: u32::MAX, strong_len: 8 };
        let file = SignatureFile::parse([&shape.header()[..], &[1; 24]].concat()).unwrap();
        let sought = Sought::new(&file, 4 << 20, 1 << 20).unwrap();
        assert_eq!((sought.numbers.len(), sought.signature.serialized().len()), (0, HEADER));
    }
}
