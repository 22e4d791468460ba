//! A line of text that travels in a delta: product, versions, a date. Nothing depends on it (spec, 3.4).

use super::DeltaError;
use super::header::{Codec, Header, Kind, Section};
use super::stream::{ReadAt, Stretch};
use std::fmt;
use std::io::Read;
use std::str::FromStr;
use std::sync::Arc;

/// The longest label, in bytes.
pub const LONGEST: usize = 1024;

/// One line of text, of 1 to [`LONGEST`] bytes, that can be shown on a terminal as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Label(String);

impl Label {
    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// What a delta has for a label; `None` without one, or where it is not as the spec says.
    ///
    /// # Errors
    /// Where the file cannot be read.
    pub(crate) fn read(source: &Arc<dyn ReadAt>, header: &Header) -> Result<Option<Self>, DeltaError> {
        let fits = |s: &&Section| s.kind == Some(Kind::Label) && s.codec == Codec::Stored;
        let Some(section) = header.sections.iter().find(fits) else { return Ok(None) };
        if section.stored_len > LONGEST as u64 {
            return Ok(None);
        }
        let mut text = Vec::new();
        let mut stretch = Stretch { source: Arc::clone(source), offset: section.offset, left: section.stored_len };
        stretch.read_to_end(&mut text).map_err(DeltaError::Io)?;
        Ok(String::from_utf8(text).ok().and_then(|text| text.parse().ok()))
    }
}

impl FromStr for Label {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.is_empty() || text.len() > LONGEST {
            return Err(format!("a label has 1 to {LONGEST} bytes"));
        }
        if text.chars().any(|c| c.is_control() || turns_text_around(c)) {
            return Err("a label is one line of text, without control characters".into());
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Line and paragraph separators, and what makes a terminal show text in another order than it stands (Unicode's
/// bidirectional controls): a label comes from elsewhere.
fn turns_text_around(c: char) -> bool {
    matches!(c, '\u{061C}' | '\u{200E}' | '\u{200F}' | '\u{2028}'..='\u{202E}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_is_one_line_that_can_be_shown() {
        for good in ["v1.2 → v1.3", "x", "Kühlschrank 7, 2026-11-23", &"a".repeat(LONGEST)] {
            assert_eq!(good.parse::<Label>().as_ref().map(Label::as_str), Ok(good));
        }
        for bad in ["", "a\nb", "\u{1b}[2J", "a\u{9b}b", "a\u{202e}b", "a\u{2028}b", &"a".repeat(LONGEST + 1)] {
            assert!(bad.parse::<Label>().is_err(), "{bad:?}");
        }
    }
}
