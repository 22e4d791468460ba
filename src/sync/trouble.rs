//! Why a sync ends before it is done, and what that means for the user.

use crate::device::DeviceError;
use crate::error::Error;
use std::ops::Range;

/// Why a sync ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum Trouble {
    /// The user asked to stop.
    #[error("asked to stop")]
    Stop,
    /// The target failed.
    #[error(transparent)]
    Target(#[from] DeviceError),
    /// The image cannot be read.
    #[error("{0}")]
    Image(String),
    /// A compressed image does not unpack.
    #[error("{name} cannot be unpacked behind byte {offset} of the image: {why}")]
    Corrupt { name: String, offset: u64, why: String },
    /// The image is longer than the target, which was not known before.
    #[error("{image} is longer than {target}, which has {len} bytes")]
    TooLong { image: String, target: String, len: u64 },
    /// The image was written meanwhile.
    #[error("{0} was written by another program while it was read")]
    Changed(String),
    /// A delta that was to be kept cannot be written.
    #[error("{0}")]
    Unsaved(String),
    /// The image has yielded something else than when it was compared.
    #[error("{image} was not the same when it was read again: bytes {} to {} of it were right on {target} before", .bytes.start, .bytes.end)]
    Inconstant { image: String, target: String, bytes: Range<u64> },
    /// The target does not hold what was written.
    #[error(
        "reading back what was written between bytes {} and {} gives something else: the medium, or one below it that \
        is full, did not keep it", .0.start, .0.end
    )]
    Unkept(Range<u64>),
}

impl Trouble {
    /// What to do about it.
    fn next(&self) -> &'static str {
        match self {
            Self::Stop => "Run the same command again to finish",
            Self::Target(e) if e.is_full() => {
                "Make room on the file system that it lies on, then run the same command again to finish"
            }
            Self::Target(_) => {
                "Check the medium and its cable ('dmesg' may tell more), then run the same command again to finish"
            }
            Self::Image(_) => "Run the same command again when the image can be read",
            Self::Corrupt { .. } => "Run the command again with a good image",
            Self::TooLong { .. } => "Use a larger target, or a smaller image",
            Self::Unsaved(_) => "Run the same command again with a file that can be written, to finish",
            Self::Inconstant { .. } => "Run the same command again when nobody writes the image, or use a copy of it",
            Self::Changed(_) => "Run the same command again when nobody writes the image",
            Self::Unkept(_) => "Run the same command again; if that ends in the same way, the medium is bad",
        }
    }

    /// As the verb's failure; `written`: how many bytes of the target were written, if that had begun.
    pub fn into_error(self, target: String, written: Option<u64>) -> Error {
        match (written, self) {
            (Some(written), trouble) => Error::unfinished(target, written, trouble.to_string(), trouble.next()),
            (None, Self::Stop) => Error::Interrupted,
            (None, Self::Target(e)) => Error::Device(e),
            (None, trouble) => Error::Image { why: trouble.to_string(), next: trouble.next() },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_say_whether_anything_was_written_and_what_to_do() {
        let corrupt = || Trouble::Corrupt { name: "a.gz".into(), offset: 5, why: "bad".into() };
        let untouched = corrupt().into_error("t".into(), None);
        assert_eq!(untouched.exit_code(), 1);
        assert!(untouched.to_string().contains("Nothing was written. Run the command again with a good image"));
        let begun = corrupt().into_error("t".into(), Some(4096));
        assert_eq!(begun.exit_code(), 3);
        let said = begun.to_string();
        assert!(
            said.contains("t: stopped after 4096 bytes had been written: a.gz cannot be unpacked behind byte 5"),
            "{said}"
        );
        assert!(said.contains("holds neither") && said.contains("with a good image"), "{said}");
        assert_eq!(Trouble::Stop.into_error("t".into(), None).exit_code(), 1);
        assert_eq!(Trouble::Stop.into_error("t".into(), Some(0)).exit_code(), 3);
    }
}
