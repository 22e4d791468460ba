//! Differences of add steps: where a field of four bytes changes, and by how much (spec, section 6.4).
//!
//! In programs most differences are addresses that moved. How far one moved depends on what it points at, so both sides
//! guess it from what other fields of the batch that point near there have moved.

use super::DeltaError;
use super::header::Kind;
use super::pack::Streams;
use super::stream::StreamReader;

/// Bytes of a field that the end of its step does not cut.
pub const FIELD: usize = 4;
/// Lists of guesses.
pub const LISTS: usize = 256;
/// Guesses in a list; numbers from this on stand for a value of their own.
pub const GUESSES: usize = 4;
/// log2 of the bytes of address space whose targets share a list.
pub const TARGET_LOG: u32 = 14;
/// One past the largest number in the difference values.
const NUMBERS: u64 = GUESSES as u64 + (1 << 32);

/// Where the bytes of an add step come from and go: the low halves of its offsets, as addresses have 32 bits here.
#[derive(Clone, Copy, Debug)]
struct Place {
    src: u32,
    displacement: u32,
}

impl Place {
    fn new(src: u64, dst: u64) -> Self {
        Self { src: src as u32, displacement: src.wrapping_sub(dst) as u32 }
    }
}

/// The last shifts of what fields point at, by where they point.
struct Guesses {
    lists: Box<[[u32; GUESSES]; LISTS]>,
}

impl Default for Guesses {
    fn default() -> Self {
        Self { lists: Box::new([[0; GUESSES]; LISTS]) }
    }
}

impl Guesses {
    /// The list for a field of value `old` at `at` of a step, taken as an address relative to its own place.
    fn list(&mut self, place: Place, at: usize, old: u32) -> &mut [u32; GUESSES] {
        let target = place.src.wrapping_add(at as u32).wrapping_add(old);
        &mut self.lists[(target >> TARGET_LOG) as usize % LISTS]
    }
}

/// Moves entry `k` of a list to its front, and makes it `shift`.
fn to_front(list: &mut [u32; GUESSES], k: usize, shift: u32) {
    // One by one: for so few, a rotation takes longer.
    for i in (0..k.min(GUESSES - 1)).rev() {
        list[i + 1] = list[i];
    }
    list[0] = shift;
}

/// A field of 1 to 4 bytes as a number.
fn field(bytes: &[u8]) -> u32 {
    bytes.iter().rev().fold(0, |value, byte| value << 8 | u32::from(*byte))
}

/// Reads the differences of add steps, in order.
pub struct DifferenceReader {
    gaps: StreamReader,
    values: StreamReader,
    /// What is left of the gap that has been read; its field follows.
    gap: Option<u64>,
    guesses: Guesses,
}

impl DifferenceReader {
    /// Opens the difference columns of a route.
    ///
    /// # Errors
    /// Where a decompressor cannot be set up.
    pub fn open(streams: &Streams) -> Result<Self, DeltaError> {
        let (gaps, values) = (streams.open(Kind::DifferenceGaps)?, streams.open(Kind::DifferenceValues)?);
        Ok(Self { gaps, values, gap: None, guesses: Guesses::default() })
    }

    /// A data batch begins: forgets what was learnt, since batches that are passed over teach nothing.
    pub fn start_batch(&mut self) {
        self.guesses = Guesses::default();
    }

    /// Takes the differences of a step of `len` bytes: calls `change` with start and number of each field.
    fn next(&mut self, len: u64, mut change: impl FnMut(u64, u64, &mut Guesses)) -> Result<(), DeltaError> {
        let mut at = 0;
        while at < len {
            let gap = match self.gap.take() {
                Some(gap) => gap,
                None => self.gaps.varint()?,
            };
            let same = gap.min(len - at);
            at += same;
            if at == len {
                self.gap = Some(gap - same);
                break;
            }
            let number = self.values.varint()?;
            if number >= NUMBERS {
                return Err(DeltaError::field("difference value", number, format!("below {NUMBERS}")));
            }
            change(at, number, &mut self.guesses);
            at += (FIELD as u64).min(len - at);
        }
        Ok(())
    }

    /// Adds the differences of the next step to `target`, which holds the bytes from `src` on and becomes those from
    /// `dst` on.
    ///
    /// # Errors
    /// Where the columns end early or are malformed.
    pub fn add_to(&mut self, src: u64, dst: u64, target: &mut [u8]) -> Result<(), DeltaError> {
        let place = Place::new(src, dst);
        self.next(target.len() as u64, |at, number, guesses| {
            let at = at as usize;
            let end = (at + FIELD).min(target.len());
            let old = field(&target[at..end]);
            let list = guesses.list(place, at, old);
            // A number of more than 32 bits must not become a small one on a machine with small pointers.
            let index = usize::try_from(number).unwrap_or(usize::MAX);
            let value = if let Some(shift) = list.get(index).copied() {
                to_front(list, index, shift);
                shift.wrapping_add(place.displacement)
            } else {
                let value = unzigzag(number - GUESSES as u64);
                to_front(list, GUESSES - 1, value.wrapping_sub(place.displacement));
                value
            };
            let new = old.wrapping_add(value).to_le_bytes();
            target[at..end].copy_from_slice(&new[..end - at]);
        })
    }

    /// Passes over the differences of a step of `len` bytes.
    ///
    /// # Errors
    /// As [`DifferenceReader::add_to`].
    pub fn skip(&mut self, len: u64) -> Result<(), DeltaError> {
        self.next(len, |_, _, _| {})
    }

    /// Checks that both columns have been read to their ends.
    ///
    /// # Errors
    /// Left-over gaps or values.
    pub fn finish(self) -> Result<(), DeltaError> {
        if self.gap.is_some_and(|gap| gap > 0) {
            return Err(DeltaError::Malformed("a gap between differences is longer than the steps that use it"));
        }
        self.gaps.finish()?;
        self.values.finish()
    }
}

/// A zigzag number of 32 bits; `number` is below 2^32.
fn unzigzag(number: u64) -> u32 {
    let number = number as u32;
    (number >> 1) ^ (number & 1).wrapping_neg()
}

fn zigzag(value: u32) -> u64 {
    let sign = (value.cast_signed() >> 31).cast_unsigned();
    ((value << 1) ^ sign).into()
}

/// Writes differences: the counterpart of [`DifferenceReader`].
#[derive(Default)]
pub struct DifferenceWriter {
    gap: u64,
    guesses: Guesses,
}

impl DifferenceWriter {
    /// A data batch begins.
    pub fn start_batch(&mut self) {
        self.guesses = Guesses::default();
    }

    /// Appends the differences of a step that makes `made` at `dst` out of `base` at `src`, to the two columns.
    pub fn put(&mut self, (src, base): (u64, &[u8]), (dst, made): (u64, &[u8]), columns: [&mut Vec<u8>; 2]) {
        let place = Place::new(src, dst);
        let [gaps, values] = columns;
        let len = base.len().min(made.len());
        let mut at = 0;
        loop {
            let same = equal_bytes(&base[at..len], &made[at..len]);
            self.gap += same as u64;
            at += same;
            if at == len {
                break;
            }
            crate::varint::put(gaps, std::mem::take(&mut self.gap));
            let end = (at + FIELD).min(len);
            crate::varint::put(values, self.number(place, at, &base[at..end], &made[at..end]));
            at = end;
        }
    }

    fn number(&mut self, place: Place, at: usize, old: &[u8], new: &[u8]) -> u64 {
        let old_field = field(old);
        // A field that the step's end cuts is taken as signed, so that its number is small either way.
        let spare = 8 * (FIELD - old.len()) as u32;
        let value = field(new).wrapping_sub(old_field) << spare;
        let value = (value.cast_signed() >> spare).cast_unsigned();
        let shift = value.wrapping_sub(place.displacement);
        let list = self.guesses.list(place, at, old_field);
        let known = list.iter().position(|guess| *guess == shift);
        to_front(list, known.unwrap_or(GUESSES - 1), shift);
        known.map_or_else(|| GUESSES as u64 + zigzag(value), |k| k as u64)
    }

    /// Ends the columns.
    pub fn finish(self, gaps: &mut Vec<u8>) {
        if self.gap > 0 {
            crate::varint::put(gaps, self.gap);
        }
    }
}

/// How many bytes two slices of one length begin with in common.
fn equal_bytes(a: &[u8], b: &[u8]) -> usize {
    const STRIDE: usize = 64;
    let strides = a.chunks_exact(STRIDE).zip(b.chunks_exact(STRIDE)).take_while(|(a, b)| a == b).count() * STRIDE;
    strides + a[strides..].iter().zip(&b[strides..]).take_while(|(a, b)| a == b).count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::delta::header::{Codec, Section};
    use crate::delta::stream::ReadAt;
    use proptest::prelude::*;
    use std::sync::Arc;

    fn reader(columns: [&[u8]; 2]) -> DifferenceReader {
        let open = |bytes: &[u8]| {
            let len = bytes.len() as u64;
            let (kind, blake3) = (Some(Kind::DifferenceGaps), [0; 32]);
            let section =
                Section { kind, route: 0, codec: Codec::Stored, offset: 0, stored_len: len, raw_len: len, blake3 };
            let source: Arc<dyn ReadAt> = Arc::new(bytes.to_vec());
            StreamReader::open(&source, Some(&section), "test").unwrap()
        };
        let [gaps, values] = columns.map(open);
        DifferenceReader { gaps, values, gap: None, guesses: Guesses::default() }
    }

    /// (source offset, old bytes, destination offset, new bytes, whether a batch begins)
    type Case = (u64, Vec<u8>, u64, Vec<u8>, bool);

    fn write(steps: &[Case]) -> [Vec<u8>; 2] {
        let mut writer = DifferenceWriter::default();
        let [mut gaps, mut values] = [Vec::new(), Vec::new()];
        for (src, old, dst, new, begins) in steps {
            if *begins {
                writer.start_batch();
            }
            writer.put((*src, old), (*dst, new), [&mut gaps, &mut values]);
        }
        writer.finish(&mut gaps);
        [gaps, values]
    }

    fn step() -> impl Strategy<Value = Case> {
        let bytes = proptest::collection::vec((any::<u8>(), prop_oneof![4 => Just(0u8), 1 => any::<u8>()]), 1..40);
        (any::<u64>(), any::<u64>(), bytes, any::<bool>()).prop_map(|(src, dst, bytes, begins)| {
            let old = bytes.iter().map(|(old, _)| *old).collect();
            (src, old, dst, bytes.iter().map(|(old, more)| old.wrapping_add(*more)).collect(), begins)
        })
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(steps in proptest::collection::vec((step(), any::<bool>()), 0..20)) {
            // Whole batches are passed over, as after an interruption.
            let mut skip = false;
            let plan: Vec<(Case, bool)> = steps.into_iter().map(|(case, choice)| {
                skip = if case.4 { choice } else { skip };
                (case, skip)
            }).collect();
            let cases: Vec<Case> = plan.iter().map(|(case, _)| case.clone()).collect();
            let [gaps, values] = write(&cases);
            let mut reader = reader([&gaps, &values]);
            for ((src, old, dst, new, begins), skip) in plan {
                if begins {
                    reader.start_batch();
                }
                if skip {
                    reader.skip(old.len() as u64).unwrap();
                } else {
                    let mut target = old;
                    reader.add_to(src, dst, &mut target).unwrap();
                    prop_assert_eq!(target, new);
                }
            }
            reader.finish().unwrap();
        }

        #[test]
        fn no_bytes_make_the_reader_panic(gaps: Vec<u8>, values: Vec<u8>, src: u64, dst: u64, len in 0usize..100) {
            let mut reader = reader([&gaps, &values]);
            let _ = reader.add_to(src, dst, &mut vec![7; len]).and_then(|()| reader.skip(len as u64));
            let _ = reader.finish();
        }
    }

    #[test]
    fn a_call_to_a_function_that_moved_is_guessed_the_second_time() {
        // Two relative addresses of one target, which has moved by 0x121 while they moved by 0x20.
        let (src, dst) = (0x1000u64, 0x1020u64);
        let mut old = vec![0x90; 64];
        let mut new = old.clone();
        for at in [8u32, 40] {
            let relative = 0x9000u32 - (0x1000 + at);
            old[at as usize..][..4].copy_from_slice(&relative.to_le_bytes());
            new[at as usize..][..4].copy_from_slice(&(relative + 0x101).to_le_bytes());
        }
        let [gaps, values] = write(&[(src, old, dst, new, true)]);
        assert_eq!(gaps, [8, 28, 20]);
        assert_eq!(values, [0x86, 0x04, 0], "4 + zigzag(0x101), then the first guess");
    }

    #[test]
    fn numbers_beyond_32_bits_are_refused() {
        let mut values = Vec::new();
        crate::varint::put(&mut values, NUMBERS);
        let error = reader([&[0], &values]).skip(4).unwrap_err();
        assert!(error.to_string().contains("difference value"), "{error}");
    }
}
