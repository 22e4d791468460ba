//! Where an output goes: to a file, or, for `-`, to standard output. And what `-` is called.

use crate::error::Error;
use crate::output::{Output, folder_of};
use std::fs::File;
use std::io::{IsTerminal, Seek};
use std::path::{Path, PathBuf};

/// Whether a path stands for standard input or output; a file of that name is `./-`.
#[must_use]
pub fn is_standard(path: &Path) -> bool {
    path == Path::new("-")
}

/// How an input is named in messages.
#[must_use]
pub fn input_name(path: &Path) -> &Path {
    if is_standard(path) { Path::new("standard input") } else { path }
}

/// How an output is named in messages.
#[must_use]
pub fn output_name(path: &Path) -> &Path {
    if is_standard(path) { Path::new("standard output") } else { path }
}

/// The folder for what an output needs while it is made.
pub(crate) fn work_folder(output: &Path) -> PathBuf {
    if is_standard(output) { std::env::temp_dir() } else { folder_of(output).to_owned() }
}

/// The folder where images are unpacked for an output: TMPDIR, where the user names one, else beside the output, where
/// room is needed anyway.
pub(crate) fn unpack_folder(output: Option<&Path>) -> PathBuf {
    let folder = match std::env::var_os("TMPDIR").filter(|folder| !folder.is_empty()) {
        Some(folder) => folder.into(),
        None => output.map_or_else(std::env::temp_dir, work_folder),
    };
    // It is named in messages, where '.' would not say much.
    folder.canonicalize().unwrap_or(folder)
}

/// A place that an output can go to.
#[derive(Debug)]
pub(crate) enum Outlet {
    File(PathBuf),
    /// Gets nothing before everything is there, and right: whoever reads it could not take it back.
    Standard {
        /// Where it is kept until then.
        folder: PathBuf,
    },
}

impl Outlet {
    /// Checks what can be checked before the work begins. `inputs` must not be overwritten.
    pub fn new<'a>(path: &Path, inputs: impl Iterator<Item = &'a Path>) -> Result<Self, Error> {
        if !is_standard(path) {
            let path = real_output(path)?;
            check_output(&path, inputs)?;
            return Ok(Self::File(path));
        }
        if std::io::stdout().is_terminal() {
            let why =
                "standard output is a terminal, and what would be written is not text: send it to a pipe or a file";
            return Err(Error::Unusable { path: output_name(path).to_owned(), why });
        }
        Ok(Self::Standard { folder: work_folder(path) })
    }

    /// The folder to work in.
    pub fn folder(&self) -> &Path {
        match self {
            Self::File(path) => folder_of(path),
            Self::Standard { folder } => folder,
        }
    }

    /// For messages.
    pub fn name(&self) -> &Path {
        match self {
            Self::File(path) => path,
            Self::Standard { .. } => output_name(Path::new("-")),
        }
    }

    /// Starts an output.
    pub fn create(&self) -> Result<Output, Error> {
        let folder = self.folder();
        Output::create_in(folder).map_err(Error::io("create a file in", folder))
    }

    /// Ends it: from now on it is to be seen.
    pub fn finish(&self, output: Output) -> Result<(), Error> {
        match self {
            Self::File(path) => output.finish(path).map_err(Error::io("create", path)),
            Self::Standard { .. } => send(output.file()).map_err(Error::io("write to", self.name())),
        }
    }
}

fn send(mut file: &File) -> std::io::Result<()> {
    file.rewind()?;
    let mut out = std::io::stdout().lock();
    std::io::copy(&mut file, &mut out)?;
    std::io::Write::flush(&mut out)
}

/// Where the output really goes: what a symbolic link names, so that the link is not replaced by a file.
pub(crate) fn real_output(output: &Path) -> Result<PathBuf, Error> {
    if !std::fs::symlink_metadata(output).is_ok_and(|meta| meta.is_symlink()) {
        return Ok(output.to_owned());
    }
    let real = output.canonicalize().map_err(Error::io("follow the link", output))?;
    if output.starts_with("/dev") || output.starts_with("/proc") {
        return Err(Error::Unusable { path: output.to_owned(), why: "the output must be a file that can be replaced" });
    }
    Ok(real)
}

/// An output that is one of the inputs, a directory or a device would be destroyed or useless.
pub(crate) fn check_output<'a>(output: &Path, mut inputs: impl Iterator<Item = &'a Path>) -> Result<(), Error> {
    let Ok(meta) = std::fs::metadata(output) else { return Ok(()) };
    let unusable = |why| Err(Error::Unusable { path: output.to_owned(), why });
    if !meta.is_file() {
        return unusable("the output must be a file, not a directory or a device");
    }
    let same = |input: &Path| matches!((input.canonicalize(), output.canonicalize()), (Ok(a), Ok(b)) if a == b);
    if inputs.any(same) {
        return unusable("the output would overwrite an input; give it another name");
    }
    Ok(())
}
