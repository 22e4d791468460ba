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
    /// A new text.
    text: Vec<u8>,
    /// The blocks that it stands for.
    packed: Vec<u8>,
}

/// What fills in the sources of a batch's steps, which are asked for in their order.
pub(crate) trait Fetch {
    /// Fills in what a step reads.
    ///
    /// # Errors
    /// Where that is not there.
    fn fill(&mut self, step: &Step, target: &mut [u8]) -> Result<(), DeltaError>;

    /// Passes over what a step reads, if it reads anything.
    fn pass(&mut self, step: &Step);
}

/// Where the old texts of a batch come from.
pub(crate) trait Texts {
    /// Does an unpack step, or waits until it is done.
    ///
    /// # Errors
    /// Where it cannot be.
    fn unpack(&mut self, step: &Step, fetch: &mut impl Fetch) -> Result<(), DeltaError>;

    /// The bytes of the old text that a step reads.
    ///
    /// # Errors
    /// Where they are not there.
    fn get(&self, step: &Step) -> Result<&[u8], DeltaError>;

    /// The text was used: the next unpack step begins a new one.
    fn close(&mut self);
}

impl Texts for OldTexts {
    fn unpack(&mut self, step: &Step, fetch: &mut impl Fetch) -> Result<(), DeltaError> {
        self.unpack(step, |source| fetch.fill(step, source))
    }

    fn get(&self, step: &Step) -> Result<&[u8], DeltaError> {
        self.get(step)
    }

    fn close(&mut self) {
        self.close();
    }
}

impl Maker {
    /// Before the first batch.
    ///
    /// # Errors
    /// Where a decompressor cannot be set up.
    pub fn new(delta: &Delta) -> Result<Self, DeltaError> {
        let (differences, literals) = (delta.differences()?, delta.literals()?);
        Ok(Self { differences, literals, text: Vec::new(), packed: Vec::new() })
    }

    /// Makes the bytes of the next batch, which `steps` tile. `fetch` fills in the sources of steps that read; `texts` are at
    /// the start of the batch.
    ///
    /// # Errors
    /// Where the delta cannot be read any more, `fetch` fails, or compressed data are not what the delta says.
    pub fn make(
        &mut self,
        steps: &[Step],
        output: &mut [u8],
        mut fetch: impl Fetch,
        texts: &mut impl Texts,
    ) -> Result<(), DeltaError> {
        self.differences.start_batch();
        let (mut rest, mut steps) = (output, steps);
        while let Some((step, others)) = steps.split_first() {
            steps = others;
            if step.kind.unpacks() {
                texts.unpack(step, &mut fetch)?;
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
                    self.pack(step, text, target, texts)?;
                }
                _ => {
                    fetch.fill(step, target)?;
                    if step.kind.adds() {
                        self.differences.add_to(step.src, step.dst, target)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Makes a new text, and of it the compressed bytes.
    fn pack(
        &mut self,
        step: &Step,
        text: &[Step],
        target: &mut [u8],
        texts: &mut impl Texts,
    ) -> Result<(), DeltaError> {
        self.text.clear();
        self.text.reserve_exact(NEW_TEXT as usize);
        for part in text {
            let from = self.text.len();
            if part.kind == StepKind::TextLiteral {
                self.text.resize(from + part.len as usize, 0);
                self.literals.fill(&mut self.text[from..])?;
                continue;
            }
            self.text.extend_from_slice(texts.get(part)?);
            if part.kind.adds() {
                self.differences.add_to(part.src, part.dst, &mut self.text[from..])?;
            }
        }
        texts.close();
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
