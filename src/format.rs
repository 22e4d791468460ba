//! What an image is: what the user says, and what its first bytes do.
//!
//! Only a regular file, or a stream, is ever taken for anything but the image itself: the content of a device belongs to
//! whoever uses it. For qcow2 that is a matter of security (see [`crate::qcow2`]). A compressed image names no other file:
//! who writes one to a disk whose raw image is a file can at most replace content by other content, all of which is theirs.
//! A raw image that begins like a compressed one is unheard of, but `--format raw` is there for it.

use crate::error::Error;
use crate::packed::{HEAD, Packing, recognise};
use crate::qcow2::is_qcow2;
use crate::reading::read_up_to;
use std::fs::File;
use std::path::Path;

/// What the user says about the format of an image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// To be found out, where that is safe.
    #[default]
    Auto,
    /// The bytes are the image, whatever they look like.
    Raw,
    /// qcow2, whatever the name is.
    Qcow2,
    /// Compressed in this way.
    Packed(Packing),
}

/// What an image is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Its bytes are the image.
    Raw,
    /// A qcow2 image.
    Qcow2,
    /// A compressed image.
    Packed(Packing),
}

/// Where an image lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Medium {
    /// In a regular file.
    File,
    /// On a block device.
    Device,
    /// It comes through a pipe.
    Pipe,
}

/// What an image is; `head` are its first [`HEAD`] bytes, fewer only where it has no more.
///
/// # Errors
/// [`Error::Unusable`] where content and name disagree, it cannot be what the user says, or is packed in a way that
/// cannot be read.
pub fn kind(path: &Path, head: &[u8], medium: Medium, format: Format) -> Result<Kind, Error> {
    let unusable = |why| Err(Error::Unusable { path: path.to_owned(), why });
    if is_qcow2(path, head, medium == Medium::File, format)? {
        return Ok(Kind::Qcow2);
    }
    match (format, medium) {
        (Format::Raw | Format::Qcow2, _) | (Format::Auto, Medium::Device) => Ok(Kind::Raw),
        (Format::Packed(_), Medium::Device) => unusable("a device is always raw: only a file or a stream is unpacked"),
        (Format::Packed(said), _) if recognise(head) == Ok(Some(said)) => Ok(Kind::Packed(said)),
        (Format::Packed(_), _) => unusable("is not compressed in the way that '--format' says: it begins otherwise"),
        (Format::Auto, _) => match recognise(head) {
            Ok(Some(packing)) => Ok(Kind::Packed(packing)),
            Ok(None) if medium == Medium::File && is_named_packed(path) && !head.is_empty() => unusable(
                "is not compressed, though its name says so: it is damaged, or not completely there. If it is a raw \
                 image, say '--format raw'",
            ),
            Ok(None) => Ok(Kind::Raw),
            Err(why) => unusable(why),
        },
    }
}

/// [`kind`] of a file or a device that is there; its first bytes are read only where they matter.
///
/// # Errors
/// As [`kind`], and where it cannot be read.
pub fn kind_of(path: &Path, format: Format) -> Result<Kind, Error> {
    let regular = crate::image::storage_kind(path)?.is_file();
    let mut head = [0; HEAD];
    let mut len = 0;
    if regular && format != Format::Raw {
        let file = File::open(path).map_err(Error::io("open", path))?;
        len = read_up_to(&file, 0, &mut head).map_err(Error::io("read", path))?;
    }
    kind(path, &head[..len], if regular { Medium::File } else { Medium::Device }, format)
}

/// Whether a file has the name of a compressed one.
fn is_named_packed(path: &Path) -> bool {
    const NAMES: [&str; 5] = ["gz", "xz", "zst", "zstd", "bz2"];
    path.extension().is_some_and(|extension| NAMES.iter().any(|name| extension.eq_ignore_ascii_case(name)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_content_counts_but_not_of_devices_and_the_user_has_the_last_word() {
        let gzip = Format::Packed(Packing::Gzip);
        let ask = |name: &str, head: &[u8], medium, format| kind(Path::new(name), head, medium, format).ok();
        for (name, head, medium, format, expected) in [
            ("a.img", &b"\x1f\x8b\x08\0"[..], Medium::File, Format::Auto, Some(Kind::Packed(Packing::Gzip))),
            ("a.xz", b"\x1f\x8b\x08\0", Medium::File, Format::Auto, Some(Kind::Packed(Packing::Gzip))),
            ("-", b"\x1f\x8b\x08\0", Medium::Pipe, Format::Auto, Some(Kind::Packed(Packing::Gzip))),
            ("sda", b"\x1f\x8b\x08\0", Medium::Device, Format::Auto, Some(Kind::Raw)),
            ("sda", b"\x1f\x8b\x08\0", Medium::Device, gzip, None),
            ("a.gz", b"\x1f\x8b\x08\0", Medium::File, Format::Raw, Some(Kind::Raw)),
            ("a.img", b"\x1f\x8b\x08\0", Medium::File, gzip, Some(Kind::Packed(Packing::Gzip))),
            ("a.img", b"\x1f\x8b\x08\0", Medium::File, Format::Packed(Packing::Xz), None),
            ("a.img", b"\x1f\x8b\x08\0", Medium::File, Format::Qcow2, None),
            ("a.gz", b"\xeb\x63\x90", Medium::File, Format::Auto, None),
            ("a.ZST", b"\xeb\x63\x90", Medium::File, Format::Auto, None),
            ("a.gz", b"\xeb\x63\x90", Medium::File, Format::Raw, Some(Kind::Raw)),
            ("a.gz", b"\xeb\x63\x90", Medium::Pipe, Format::Auto, Some(Kind::Raw)),
            ("a.gz", b"", Medium::File, Format::Auto, Some(Kind::Raw)),
            ("a.img", b"PK\x03\x04", Medium::File, Format::Auto, None),
            ("a.img", b"PK\x03\x04", Medium::File, Format::Raw, Some(Kind::Raw)),
            ("a.qcow2", b"QFI\xfb", Medium::File, Format::Auto, Some(Kind::Qcow2)),
            ("a.qcow2", b"QFI\xfb", Medium::Pipe, Format::Auto, None),
            ("a.qcow2", b"QFI\xfb", Medium::Device, Format::Auto, Some(Kind::Raw)),
        ] {
            assert_eq!(ask(name, head, medium, format), expected, "{name} {head:?} {medium:?} {format:?}");
        }
    }
}
