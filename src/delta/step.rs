//! Steps: how the bytes of a data batch are made (spec, chapter 6). Sources are logical: offsets in the old or the new
//! image, wherever those bytes currently lie.

use super::DeltaError;
use super::header::Kind;
use super::pack::Streams;
use super::stream::StreamReader;
use crate::units::Extent;

/// What a step does. The numbers are the format's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum StepKind {
    /// Bytes from the literals.
    Literal = 0,
    /// Bytes of the old image.
    Copy = 1,
    /// Bytes of the old image, differences added.
    Add = 2,
    /// Zeros.
    Zero = 3,
    /// Bytes of the new image that were produced before, or are the same in the old image.
    CopyNew = 4,
    /// The same, differences added.
    AddNew = 5,
}

impl StepKind {
    /// All kinds, by number.
    pub const ALL: [Self; 6] = [Self::Literal, Self::Copy, Self::Add, Self::Zero, Self::CopyNew, Self::AddNew];

    /// Whether it reads the old image, the new one, or neither.
    #[must_use]
    pub fn space(self) -> Option<Space> {
        match self {
            Self::Literal | Self::Zero => None,
            Self::Copy | Self::Add => Some(Space::Old),
            Self::CopyNew | Self::AddNew => Some(Space::New),
        }
    }

    /// Whether differences are added.
    #[must_use]
    pub fn adds(self) -> bool {
        matches!(self, Self::Add | Self::AddNew)
    }
}

/// Which image a logical offset means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Space {
    /// The old image.
    Old,
    /// The new image.
    New,
}

/// One step: `len` bytes of the new image from `dst`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// What it does.
    pub kind: StepKind,
    /// First byte, in the new image.
    pub dst: u64,
    /// Bytes, at least 1.
    pub len: u64,
    /// First source byte; 0 for steps that read nothing.
    pub src: u64,
}

/// The displacement (source minus destination) that the next source is predicted from, one for each space.
#[derive(Clone, Copy, Debug, Default)]
pub struct Prediction {
    old: i64,
    new: i64,
}

impl Prediction {
    fn of(&mut self, space: Space) -> &mut i64 {
        match space {
            Space::Old => &mut self.old,
            Space::New => &mut self.new,
        }
    }

    /// What is written for a source; the prediction follows.
    pub fn encode(&mut self, space: Space, dst: u64, src: u64) -> i64 {
        let displacement = src.wrapping_sub(dst).cast_signed();
        let last = std::mem::replace(self.of(space), displacement);
        displacement.wrapping_sub(last)
    }

    /// The source that was written; `None` where it lies outside 0 to 2^63 - 1.
    pub fn decode(&mut self, space: Space, dst: u64, coded: i64) -> Option<u64> {
        let displacement = self.of(space).checked_add(coded)?;
        *self.of(space) = displacement;
        dst.checked_add_signed(displacement).filter(|src| *src <= i64::MAX as u64)
    }
}

/// Bounds that a step must keep.
#[derive(Clone, Copy, Debug)]
pub struct StepBounds {
    /// Bytes of the old image; the largest offset there is where it is unknown.
    pub old_len: u64,
    /// Bytes of the new image.
    pub new_len: u64,
    /// Steps in a batch.
    pub batch_steps: u32,
}

/// Reads the steps of data batches, in order.
pub struct StepReader {
    kinds: StreamReader,
    lengths: StreamReader,
    sources: StreamReader,
    prediction: Prediction,
    bounds: StepBounds,
}

impl StepReader {
    /// Opens the step columns of a route.
    ///
    /// # Errors
    /// Where a decompressor cannot be set up.
    pub fn open(streams: &Streams, bounds: StepBounds) -> Result<Self, DeltaError> {
        Ok(Self {
            kinds: streams.open(Kind::StepKinds)?,
            lengths: streams.open(Kind::StepLengths)?,
            sources: streams.open(Kind::StepSources)?,
            prediction: Prediction::default(),
            bounds,
        })
    }

    /// Reads the steps that tile the extents of the next data batch.
    ///
    /// # Errors
    /// Anything that is not as the spec says.
    pub fn read_batch(&mut self, extents: &[Extent], steps: &mut Vec<Step>) -> Result<(), DeltaError> {
        steps.clear();
        for extent in extents {
            let bytes = extent.bytes(self.bounds.new_len);
            let mut dst = bytes.start;
            while dst < bytes.end {
                if steps.len() >= self.bounds.batch_steps as usize {
                    return Err(DeltaError::field("steps of a batch", steps.len() as u64 + 1, "at most batch_steps"));
                }
                let step = self.step(dst, bytes.end - dst)?;
                dst += step.len;
                steps.push(step);
            }
        }
        Ok(())
    }

    fn step(&mut self, dst: u64, room: u64) -> Result<Step, DeltaError> {
        let mut number = [0u8];
        self.kinds.fill(&mut number)?;
        let Some(kind) = StepKind::ALL.get(usize::from(number[0])).copied() else {
            return Err(DeltaError::field("step kind", number[0].into(), "0 to 5"));
        };
        let len = match self.lengths.varint()? {
            0 => room,
            len if len < room => len,
            len => return Err(DeltaError::field("step length", len, format!("0, or 1 to {}", room - 1))),
        };
        let Some(space) = kind.space() else { return Ok(Step { kind, dst, len, src: 0 }) };
        let coded = self.sources.signed()?;
        // That a new source is there already is for the order to say, see [P-9].
        let limit = if space == Space::Old { self.bounds.old_len } else { self.bounds.new_len };
        let src = self.prediction.decode(space, dst, coded);
        match src.filter(|src| src.checked_add(len).is_some_and(|end| end <= limit)) {
            Some(src) => Ok(Step { kind, dst, len, src }),
            None => {
                Err(DeltaError::field("step source", src.unwrap_or(u64::MAX), format!("{len} bytes before {limit}")))
            }
        }
    }

    /// Checks that all columns have been read to their ends.
    ///
    /// # Errors
    /// Left-over bytes.
    pub fn finish(self) -> Result<(), DeltaError> {
        self.kinds.finish()?;
        self.lengths.finish()?;
        self.sources.finish()
    }
}
