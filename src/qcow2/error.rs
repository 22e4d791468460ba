//! Why a qcow2 image is refused, with the numbers that show it.

use std::io;

/// A qcow2 image that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Qcow2Error {
    /// The system's.
    #[error("cannot {0} it: {1}")]
    Io(&'static str, #[source] io::Error),
    /// It does not begin like one.
    #[error("it is not a qcow2 image: it does not begin like one")]
    NotQcow2,
    /// Another version.
    #[error("it is of version {0}; 2 and 3 can be read")]
    Version(u32),
    /// A number of its header is out of range.
    #[error("it is damaged: {name} is {value}, which should be {allowed}")]
    Field {
        /// Of the header, as the format's definition calls it.
        name: &'static str,
        /// What it says.
        value: u64,
        /// What it may say.
        allowed: String,
    },
    /// Something it needs that cannot be done here.
    #[error("it {0}")]
    Unsupported(&'static str),
    /// Features nobody here knows.
    #[error("it uses features that are not known here (bits {0:#x})")]
    Features(u64),
    /// An entry of a table makes no sense.
    #[error(
        "it is damaged, or cut short: the entry for offset {guest} of the disk {why} (entry {entry:#018x}, the file has \
             {file_len} bytes); 'qemu-img check' tells more"
    )]
    Entry {
        /// Byte of the disk.
        guest: u64,
        /// What is wrong.
        why: &'static str,
        /// The entry.
        entry: u64,
        /// Bytes of the file.
        file_len: u64,
    },
    /// More data than the file has room for.
    #[error("it is damaged: its tables, or clusters with data, overlap; 'qemu-img check' tells more")]
    Overlap,
    /// Compressed data cannot be unpacked.
    #[error("it is damaged: the compressed data for offset {guest} of the disk cannot be unpacked: {why}")]
    Compressed {
        /// Byte of the disk.
        guest: u64,
        /// What is wrong.
        why: String,
    },
    /// The name of the backing file is no plain path.
    #[error(
        "its backing file '{0}' is not given by a plain path; only files can be read (rebase it with 'qemu-img rebase -u')"
    )]
    BackingName(String),
    /// A backing file of a foreign format.
    #[error("its backing file '{name}' has the format '{format}'; only raw and qcow2 can be read")]
    BackingFormat {
        /// The backing file.
        name: String,
        /// Its format.
        format: String,
    },
    /// A backing file without a format that begins like qcow2.
    #[error(
        "it does not say what format its backing file '{0}' has, and that begins like qcow2. This is not guessed, as whoever \
         uses a raw disk can make it look so; say it with 'qemu-img rebase -u -b BACKING -F qcow2 (or raw) IMAGE'"
    )]
    BackingUnsaid(String),
    /// A backing file that cannot be used.
    #[error("its backing file {name}: {source}")]
    Backing {
        /// The backing file.
        name: String,
        /// Why.
        #[source]
        source: Box<Qcow2Error>,
    },
    /// Something that is no file.
    #[error("{0}")]
    Kind(&'static str),
    /// The chain bites its tail.
    #[error("its chain of backing files leads back to a file that is in it already")]
    Loop,
    /// A chain that is too long.
    #[error("its chain of backing files is longer than {0}")]
    TooDeep(usize),
}
