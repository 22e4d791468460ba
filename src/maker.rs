//! Makes the bytes of data batches from the columns of a delta, in order (spec, chapter 6).

use crate::delta::difference::DifferenceReader;
use crate::delta::step::{NEW_TEXT, Step, StepKind};
use crate::delta::stream::StreamReader;
use crate::delta::text::{OldTexts, pack_new};
use crate::delta::{Delta, DeltaError};

/// The columns that steps take their bytes from.
pub(crate) struct Maker {
    differences: DifferenceReader,
    literals: StreamReader,
    texts: OldTexts,
    /// A new text.
    text: Vec<u8>,
    /// The blocks that it stands for.
    packed: Vec<u8>,
}

impl Maker {
    /// Before the first batch.
    ///
    /// # Errors
    /// Where a decompressor cannot be set up.
    pub fn new(delta: &Delta) -> Result<Self, DeltaError> {
        let (differences, literals) = (delta.differences()?, delta.literals()?);
        Ok(Self { differences, literals, texts: OldTexts::default(), text: Vec::new(), packed: Vec::new() })
    }

    /// Makes the bytes of the next batch, which `steps` tile. `fetch` fills in the source of a step that reads.
    ///
    /// # Errors
    /// Where the delta cannot be read any more, `fetch` fails, or compressed data are not what the delta says.
    pub fn make(
        &mut self,
        steps: &[Step],
        output: &mut [u8],
        mut fetch: impl FnMut(&Step, &mut [u8]) -> Result<(), DeltaError>,
    ) -> Result<(), DeltaError> {
        self.differences.start_batch();
        self.texts.start_batch();
        let (mut rest, mut steps) = (output, steps);
        while let Some((step, others)) = steps.split_first() {
            steps = others;
            if step.kind.unpacks() {
                self.texts.unpack(step, |source| fetch(step, source))?;
                continue;
            }
            let (target, others) = std::mem::take(&mut rest).split_at_mut(step.len as usize);
            rest = others;
            match step.kind {
                StepKind::Zero => target.fill(0),
                StepKind::Literal => self.literals.fill(target)?,
                kind if kind.packs() => {
                    let (text, others) = steps.split_at(steps.iter().take_while(|step| step.kind.is_text()).count());
                    steps = others;
                    self.pack(step, text, target)?;
                }
                _ => {
                    fetch(step, target)?;
                    if step.kind.adds() {
                        self.differences.add_to(step.src, step.dst, target)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Makes a new text, and of it the compressed bytes.
    fn pack(&mut self, step: &Step, text: &[Step], target: &mut [u8]) -> Result<(), DeltaError> {
        self.text.clear();
        self.text.reserve_exact(NEW_TEXT as usize);
        for part in text {
            let from = self.text.len();
            if part.kind == StepKind::TextLiteral {
                self.text.resize(from + part.len as usize, 0);
                self.literals.fill(&mut self.text[from..])?;
                continue;
            }
            self.text.extend_from_slice(self.texts.get(part)?);
            if part.kind.adds() {
                self.differences.add_to(part.src, part.dst, &mut self.text[from..])?;
            }
        }
        self.texts.close();
        pack_new(step, &self.text, &mut self.packed, target)
    }

    /// Passes over the columns of a batch that need not be made.
    ///
    /// # Errors
    /// Where the delta cannot be read any more.
    pub fn skip(&mut self, steps: &[Step]) -> Result<(), DeltaError> {
        for step in steps {
            if step.kind.is_literal() {
                self.literals.skip(step.len)?;
            } else if step.kind.adds() {
                self.differences.skip(step.len)?;
            }
        }
        Ok(())
    }
}
