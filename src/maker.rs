//! Makes the bytes of data batches from the columns of a delta, in order (spec, chapter 6).

use crate::delta::difference::DifferenceReader;
use crate::delta::step::{Step, StepKind};
use crate::delta::stream::StreamReader;
use crate::delta::{Delta, DeltaError};

/// The columns that steps take their bytes from.
pub(crate) struct Maker {
    differences: DifferenceReader,
    literals: StreamReader,
}

impl Maker {
    /// Before the first batch.
    ///
    /// # Errors
    /// Where a decompressor cannot be set up.
    pub fn new(delta: &Delta) -> Result<Self, DeltaError> {
        Ok(Self { differences: delta.differences()?, literals: delta.literals()? })
    }

    /// Makes the bytes of the next batch, which `steps` tile. `fetch` fills in the source of a step that reads.
    ///
    /// # Errors
    /// Where the delta cannot be read any more, or `fetch` fails.
    pub fn make(
        &mut self,
        steps: &[Step],
        output: &mut [u8],
        mut fetch: impl FnMut(&Step, &mut [u8]) -> Result<(), DeltaError>,
    ) -> Result<(), DeltaError> {
        self.differences.start_batch();
        let mut rest = output;
        for step in steps {
            let (target, others) = std::mem::take(&mut rest).split_at_mut(step.len as usize);
            rest = others;
            if step.kind == StepKind::Zero {
                target.fill(0);
            } else if step.kind == StepKind::Literal {
                self.literals.fill(target)?;
            } else {
                fetch(step, target)?;
                if step.kind.adds() {
                    self.differences.add_to(step.src, step.dst, target)?;
                }
            }
        }
        Ok(())
    }

    /// Passes over the columns of a batch that need not be made.
    ///
    /// # Errors
    /// Where the delta cannot be read any more.
    pub fn skip(&mut self, steps: &[Step]) -> Result<(), DeltaError> {
        for step in steps {
            if step.kind == StepKind::Literal {
                self.literals.skip(step.len)?;
            } else if step.kind.adds() {
                self.differences.skip(step.len)?;
            }
        }
        Ok(())
    }
}
