//! qcow2, the disk images of QEMU: read with their chains of backing files ([`chain`], [`layer`], [`entry`], [`header`]),
//! mapped for those who need all bytes at hand ([`map`]), and written as an overlay on a raw image ([`overlay`]).
//!
//! # What is taken for qcow2, and why so little
//!
//! The content of a raw image belongs to whoever uses the disk. A guest can write a qcow2 header to its first sector that
//! names any file of the host as its backing file; whoever then guesses the format from the content hands that file over
//! (CVE-2008-2004 and those that followed). So nothing is guessed:
//!
//! - only a regular file can be qcow2, and only if both its content and its name (`.qcow2`) say so, or the user does
//!   ([`Format`]); where content and name disagree, it is refused, and the user asked;
//! - block devices, pipes and standard input are raw;
//! - what format a backing file has stands in the overlay. Where it does not, the backing file is raw, and refused if it
//!   begins like qcow2.
//!
//! A qcow2 image that comes from a stranger may still name any file as its backing file. That is what overlays are: the
//! files of a chain are told to the user ([`chain::Chain::note`]).
//!
//! All numbers in an image are untrusted: every table entry is checked when an image is opened, before anything is done
//! with it, and memory does not depend on what the image says.

pub mod chain;
mod entry;
mod error;
pub mod header;
mod layer;
pub mod map;
pub mod overlay;
#[cfg(test)]
mod tests;

pub use chain::Chain;
pub use error::Qcow2Error;

use crate::error::Error;
use crate::format::Format;
use std::path::Path;

/// First bytes of a qcow2 image.
pub const MAGIC: [u8; 4] = *b"QFI\xfb";

/// Whether a file is to be read as qcow2. `head` are its first bytes, `regular` whether it is a regular file.
///
/// # Errors
/// [`Error::Unusable`] where content and name disagree, or it cannot be what the user says.
pub fn is_qcow2(path: &Path, head: &[u8], regular: bool, format: Format) -> Result<bool, Error> {
    let unusable = |why| Err(Error::Unusable { path: path.to_owned(), why });
    let named = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("qcow2"));
    match (format, regular, head.starts_with(&MAGIC), named) {
        (Format::Raw | Format::Packed(_), ..) | (Format::Auto, false, ..) | (Format::Auto, true, false, false) => {
            Ok(false)
        }
        (Format::Qcow2, true, true, _) | (Format::Auto, true, true, true) => Ok(true),
        (Format::Qcow2, false, ..) => unusable("only a regular file can be read as qcow2; this is always raw"),
        (Format::Qcow2, true, false, _) => unusable("is not a qcow2 image: it does not begin like one"),
        (Format::Auto, true, true, false) => unusable(
            "begins like a qcow2 image, but its name does not end in .qcow2. If it is one, say '--format qcow2'; if it is \
             a raw image, say '--format raw' (whoever uses a disk can write such a beginning to it, so this is not guessed)",
        ),
        (Format::Auto, true, false, true) => unusable(
            "is not a qcow2 image, though its name ends in .qcow2. If it is a raw image, say '--format raw'; if not, it is \
             damaged",
        ),
    }
}

#[cfg(test)]
mod recognition {
    use super::*;

    #[test]
    fn only_content_and_name_together_make_a_qcow2() {
        let ask = |name: &str, head: &[u8], regular, format| is_qcow2(Path::new(name), head, regular, format).ok();
        for (name, head, regular, format, expected) in [
            ("a.qcow2", &b"QFI\xfb\0\0"[..], true, Format::Auto, Some(true)),
            ("a.QCOW2", b"QFI\xfb", true, Format::Auto, Some(true)),
            ("a.img", b"QFI\xfb", true, Format::Auto, None),
            ("qcow2", b"QFI\xfb", true, Format::Auto, None),
            ("a.qcow2", b"QFI", true, Format::Auto, None),
            ("a.img", b"QFI", true, Format::Auto, Some(false)),
            ("a.img", b"", true, Format::Auto, Some(false)),
            ("a.qcow2", b"QFI\xfb", false, Format::Auto, Some(false)),
            ("a.qcow2", b"QFI\xfb", true, Format::Raw, Some(false)),
            ("a.img", b"QFI\xfb", true, Format::Qcow2, Some(true)),
            ("a.img", b"", true, Format::Qcow2, None),
            ("a.img", b"QFI\xfb", false, Format::Qcow2, None),
        ] {
            assert_eq!(ask(name, head, regular, format), expected, "{name} {head:?} {regular} {format:?}");
        }
    }
}
