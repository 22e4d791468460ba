//! The texts of all deflated data of an image, one behind the other, and where in the image everything in them stands.

use super::find::starts;
use super::midst::headers;
use super::stream::{Block, NONE, Place, Section, Stream};
use crate::deflate::{SILENT_AT, Unpacker};
use crate::delta::step::{Start, Step};
use crate::image::Image;
use crate::parallel;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::ops::Range;
use std::path::Path;

/// What is known of an image's deflated data.
#[derive(Default)]
pub(super) struct Texts {
    /// All texts.
    pub bytes: Image,
    /// Ascending.
    pub sections: Vec<Section>,
    /// All blocks.
    pub blocks: Vec<Block>,
    /// Where blocks begin, where sections end, and some places between.
    marks: Vec<Place>,
    /// The items that reach over the end of a block of the image, or end there: from where, to where.
    edges: Vec<(Place, Place)>,
    /// Bytes of the image that were unpacked for it.
    pub read: u64,
    /// Whether something long was broken off.
    broken: bool,
    /// Whether something was found that begins in the midst of a stream.
    pub pieces: bool,
}

/// Where deflated data are looked for.
#[derive(Clone, Copy)]
pub(super) struct Search<'a> {
    /// Where they may begin with a header that says so.
    pub starts: &'a [Range<u64>],
    /// Where they may go on, without: only blocks with codes of their own are found so.
    pub midst: &'a [Range<u64>],
    /// Whether to look for these even where nothing was broken off.
    pub always: bool,
}

/// What finding deflated data may cost.
#[derive(Clone, Copy)]
pub(super) struct Limits {
    /// Bytes of one stream's text; the rest of it is left as it is.
    pub stream: usize,
    /// Bytes of all texts; also, of compressed bytes of the image that are looked through for what goes on there.
    pub all: u64,
    pub threads: usize,
}

/// Streams that are unpacked in one go.
const GROUP: usize = 8;
/// Bytes that may be unpacked in vain, besides half of those that are not: what looks like a stream within another one.
/// Beyond, one is unpacked after the other, and nothing twice.
const IN_VAIN: u64 = 8 << 20;

/// Takes streams as they are found, and keeps those that are not within another.
struct Keeper {
    texts: Texts,
    file: BufWriter<File>,
    /// Bytes of all texts that are in the file.
    len: u64,
    /// The last one, which may turn out to be broken off.
    last: Stream,
    /// Bytes of the image that were unpacked, and those of them that are kept.
    read: u64,
    kept: u64,
    /// The bit up to which any stream was read, also one that came to nothing.
    passed: u64,
    limits: Limits,
}

impl Keeper {
    /// Whether what lies within the last stream may be unpacked as well.
    fn lavish(&self) -> bool {
        let kept = self.kept + self.last.read;
        self.read - kept <= kept / 2 + IN_VAIN
    }

    fn take(&mut self, stream: Stream) -> io::Result<()> {
        self.read += stream.read;
        self.passed = self.passed.max(stream.passed);
        let bits = stream.bits();
        if bits.is_empty() {
            return Ok(());
        }
        if bits.start < self.last.bits().end {
            // What is found within another stream is not one, unless that one is broken off.
            if !stream.breaks(&self.last) {
                return Ok(());
            }
            self.last.cut(bits.start);
        }
        self.keep_last()?;
        self.last = stream;
        Ok(())
    }

    fn keep_last(&mut self) -> io::Result<()> {
        let last = std::mem::take(&mut self.last);
        self.texts.broken |= last.breaks_off(self.limits.stream);
        self.kept += last.sections.iter().map(|section| section.bytes.end - section.bytes.start).sum::<u64>();
        self.file.write_all(&last.text)?;
        self.len = self.texts.append(last, self.len);
        Ok(())
    }
}

impl Texts {
    /// Unpacks what is found in an image. Texts are kept in a file without a name in `folder`.
    pub fn find(image: &[u8], search: Search<'_>, limits: Limits, folder: &Path) -> io::Result<Self> {
        let mut begin = starts(image, search.starts, limits.threads, |start| Stream::attempt(image, start));
        begin.iter_mut().for_each(|start| *start *= 8);
        let texts = Self::read(image, &begin, limits, folder)?;
        if !texts.broken && !search.always {
            return Ok(texts);
        }
        let rest = without(search.midst, texts.sections.iter().map(|section| &section.bytes));
        let follow = |bit, until| Stream::follow(image, bit, until, limits.stream as u64);
        let more = headers(image, &rest, limits, follow);
        if more.is_empty() {
            return Ok(texts);
        }
        drop(texts);
        begin.extend(more);
        begin.sort_unstable();
        begin.dedup();
        Ok(Self { pieces: true, ..Self::read(image, &begin, limits, folder)? })
    }

    /// Unpacks what begins at these bits.
    fn read(image: &[u8], starts: &[u64], limits: Limits, folder: &Path) -> io::Result<Self> {
        let file = BufWriter::new(tempfile::tempfile_in(folder)?);
        let (texts, last) = (Self::default(), Stream::default());
        let mut keeper = Keeper { texts, file, len: 0, last, read: 0, kept: 0, passed: 0, limits };
        let mut rest = starts;
        // The last one may become shorter yet: so it counts only when it is kept.
        while keeper.len <= limits.all {
            let mut most = GROUP;
            if !keeper.lavish() {
                rest = &rest[rest.partition_point(|start| *start < keeper.passed)..];
                most = 1;
            }
            let (group, others) = rest.split_at(most.min(rest.len()));
            if group.is_empty() {
                break;
            }
            rest = others;
            let streams = parallel::map(group.len(), limits.threads, |i| Stream::read(image, group[i], limits.stream));
            streams.into_iter().try_for_each(|stream| keeper.take(stream))?;
        }
        keeper.keep_last()?;
        let Keeper { mut texts, file, read, .. } = keeper;
        texts.read = read;
        let file = file.into_inner().map_err(io::IntoInnerError::into_error)?;
        texts.bytes = Image::of_file(file)?;
        Ok(texts)
    }

    /// Appends a stream whose text begins at `at`; returns where it ends.
    fn append(&mut self, stream: Stream, at: u64) -> u64 {
        let first = self.blocks.len() as u32;
        let placed = |place: Place| Place {
            text: place.text + at,
            block: if place.block == NONE { NONE } else { place.block + first },
            ..place
        };
        self.sections.extend(
            stream
                .sections
                .into_iter()
                .map(|section| Section { text: section.text.start + at..section.text.end + at, ..section }),
        );
        let both = |block: Block| Block { header: placed(block.header), behind: placed(block.behind) };
        self.blocks.extend(stream.blocks.into_iter().map(both));
        self.marks.extend(stream.marks.into_iter().map(placed));
        self.edges.extend(stream.edges.into_iter().map(|(from, to)| (placed(from), placed(to))));
        at + stream.text.len() as u64
    }

    /// The section that holds these bytes of the image.
    pub fn section_of(&self, bytes: &Range<u64>) -> Option<&Section> {
        let i = self.sections.partition_point(|section| section.bytes.end <= bytes.start);
        self.sections.get(i).filter(|section| section.bytes.start <= bytes.start && bytes.end <= section.bytes.end)
    }

    /// The last item that begins at `bit` or before, and where it ends; at an edge perhaps the one that ends there.
    fn item_at(&self, image: &[u8], bit: u64) -> Option<(Place, Place)> {
        let i = self.edges.partition_point(|(_, end)| end.bit < bit);
        if let Some(edge) = self.edges.get(i).filter(|(from, _)| from.bit <= bit) {
            return Some(*edge);
        }
        let i = self.marks.partition_point(|mark| mark.bit <= bit).checked_sub(1)?;
        let mut place = *self.marks.get(i)?;
        let mut unpacker = self.unpacker_at(image, place)?;
        let mut text = Vec::new();
        loop {
            text.clear();
            let (_, end) = unpacker.next(image, place.bit, &mut text).ok()?;
            let next = Place { bit: end, text: place.text + text.len() as u64, ..place };
            if end > bit {
                return Some((place, next));
            }
            place = next;
        }
    }

    fn unpacker_at(&self, image: &[u8], place: Place) -> Option<Unpacker> {
        let mut unpacker = Unpacker::new();
        let header = self.blocks.get(place.block as usize)?.header;
        if header.bit != place.bit {
            unpacker.next(image, header.bit, &mut Vec::new()).ok()?;
            unpacker.jump(true);
        }
        Some(unpacker)
    }

    /// The items that have bits in these bytes, which lie in one section: the first, and where the last ends.
    pub fn items_of(&self, image: &[u8], bytes: &Range<u64>) -> Option<(Place, Place)> {
        let section = self.section_of(bytes)?;
        let (first, _) = self.item_at(image, bytes.start * 8)?;
        let end_bit = (bytes.end * 8).min(section.bits.end);
        if end_bit == section.bits.end {
            return Some((first, Place { bit: end_bit, text: section.text.end, block: NONE }));
        }
        let (last, end) = self.item_at(image, end_bit)?;
        Some((first, if last.bit == end_bit { last } else { end }))
    }

    /// The header of a block, as text that makes no bits.
    pub fn silent_header(&self, block: u32) -> Option<Vec<u8>> {
        let Block { header, behind } = *self.blocks.get(block as usize)?;
        let mut text = self.bytes.bytes().get(header.text as usize..behind.text as usize)?.to_vec();
        *text.get_mut(SILENT_AT.0)? |= SILENT_AT.1;
        Some(text)
    }

    /// From where to unpack to get at this byte of the texts: the header of its block, unless that is more than `ahead`
    /// bytes before; then a place within the block.
    pub fn start_for(&self, text: u64, ahead: u64) -> Option<Place> {
        let mark = *self.marks.get(self.marks.partition_point(|mark| mark.text <= text).checked_sub(1)?)?;
        let header = self.blocks.get(mark.block as usize)?.header;
        Some(if text - header.text <= ahead { header } else { mark })
    }

    /// The step that unpacks the header alone of the block that is at this byte of the texts, unless the block begins there.
    pub fn header_apart(&self, text: u64) -> Option<Step> {
        let place = self.place(text)?;
        let Block { header, behind } = *self.blocks.get(place.block as usize)?;
        (header.bit != place.bit).then(|| unpack(header, behind.bit, behind.text - header.text, false))
    }

    /// Unpacks from the known place at `from` towards the one at `to`, within a section, as far as `most` bytes of the
    /// image reach; returns where in the texts it ends. `None` at the end.
    pub fn unpack_step(&self, from: u64, to: u64, most: u64) -> Option<(Step, u64)> {
        if from >= to {
            return None;
        }
        let first = self.place(from)?;
        let section = self.sections.get(self.sections.partition_point(|section| section.text.end <= from))?;
        let i = self.marks.partition_point(|mark| mark.text <= from);
        let fits =
            |mark: &&Place| mark.text <= to.min(section.text.end) && mark.bit.div_ceil(8) - first.bit / 8 <= most;
        let end = self.marks[i..].iter().take_while(fits).last()?;
        let inside = self.blocks.get(first.block as usize)?.header.bit != first.bit;
        Some((unpack(first, end.bit, end.text - from, inside), end.text))
    }

    /// The known place, not the end of a section, at this byte of the texts.
    fn place(&self, text: u64) -> Option<Place> {
        let i = self.marks.partition_point(|mark| mark.text <= text).checked_sub(1)?;
        self.marks.get(i).copied().filter(|mark| mark.text == text && mark.block != NONE)
    }

    /// The first known place at or behind this byte of the texts.
    pub fn mark_from(&self, text: u64) -> Option<Place> {
        // Where a section begins right behind another, the end comes first.
        self.marks.get(self.marks.partition_point(|mark| mark.text < text)).copied()
    }
}

/// What is in `ranges` and not in `others`, both ascending and disjoint.
fn without<'a>(ranges: &[Range<u64>], others: impl Iterator<Item = &'a Range<u64>>) -> Vec<Range<u64>> {
    let (mut rest, mut others) = (Vec::new(), others.peekable());
    for range in ranges {
        let mut at = range.start;
        while at < range.end {
            while others.next_if(|other| other.end <= at).is_some() {}
            let other = others.peek().map_or(range.end..range.end, |other| other.start.min(range.end)..other.end);
            if at < other.start {
                rest.push(at..other.start);
            }
            at = at.max(other.end);
        }
    }
    rest
}

/// Unpacks from a place up to bit `end`.
fn unpack(from: Place, end: u64, text_len: u64, inside: bool) -> Step {
    let byte = from.bit / 8;
    Step::unpack(byte, end.div_ceil(8) - byte, Start { bit: (from.bit % 8) as u8, inside }, text_len)
}
