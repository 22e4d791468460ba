//! `sign`: the signature of an image, for `diff --signature` where the image itself is not at hand.

use crate::compare::{View, identify, identify_telling};
use crate::digest::ImageId;
use crate::error::Error;
use crate::format::Format;
use crate::monitor::Monitor;
use crate::opening::{Opening, open_image};
use crate::outlet::{Outlet, unpack_folder};
use crate::signature::{self, Shape, SignatureError, SignatureFile};
use std::fs::File;
use std::io::{BufWriter, Read, Write};
use std::path::Path;

/// What `sign` did.
#[derive(Clone, Copy, Debug)]
pub struct SignReport {
    /// The image.
    pub image: ImageId,
    /// Bytes of the signature.
    pub signature_len: u64,
}

/// Writes the signature of an image. `output` appears only when it is complete.
///
/// # Errors
/// An unreadable image, one that changes meanwhile, or an output that cannot be written.
pub fn sign(
    path: &Path,
    output: &Path,
    shape: Shape,
    format: Format,
    threads: usize,
    monitor: &dyn Monitor,
) -> Result<SignReport, Error> {
    let folder = unpack_folder(Some(output));
    let image = open_image(path, format, Opening { folder: &folder, threads, monitor })?;
    let view = View::of(&image);
    let outlet = Outlet::new(output, image.files().chain([path]))?;
    let (output, file) = (outlet.name(), outlet.create()?);
    monitor.phase("hashing", view.len());
    let id = identify_telling(view, threads, monitor);
    monitor.phase("signing", view.len());
    let mut out = BufWriter::new(file.file());
    signature::write_telling(view, &id, shape, threads, &mut out, monitor)
        .and_then(|()| out.flush())
        .map_err(Error::io("write", output))?;
    drop(out);
    if image.changed_since(path).unwrap_or_else(|| identify(view, threads) != id) {
        let why = "changed while it was read: the signature would be wrong, and was not written; try again";
        return Err(Error::Unusable { path: path.to_owned(), why });
    }
    let signature_len = file.file().metadata().map_err(Error::io("write", output))?.len();
    outlet.finish(file)?;
    Ok(SignReport { image: id, signature_len })
}

/// Reads a signature of at most `memory` bytes.
///
/// # Errors
/// One that cannot be read, or used.
pub(crate) fn read_signature(path: &Path, memory: u64) -> Result<SignatureFile, Error> {
    let file = File::open(path).map_err(Error::io("read", path))?;
    let len = file.metadata().map_err(Error::io("read", path))?.len(); // 0 of a pipe
    let refused = |source| Error::Signature { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    if len <= memory {
        bytes.reserve_exact(usize::try_from(len).unwrap_or(0) + 1); // one more to see the end
        file.take(memory.saturating_add(1)).read_to_end(&mut bytes).map_err(Error::io("read", path))?;
    }
    let needed = len.max(bytes.len() as u64);
    if needed > memory {
        return Err(refused(SignatureError::Memory { needed, memory }));
    }
    SignatureFile::parse(bytes).map_err(refused)
}
