//! A delta that arrives as a stream. It is needed more than once, so it is kept in a file without a name, which is gone
//! with the process. That it is a delta, and how long, its first bytes tell: nothing else is stored.

use crate::delta::DeltaError;
use crate::delta::header::{Header, announced_len};
use crate::error::Error;
use crate::units::human;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

/// What is tried, for messages.
const KEEPING: &str = "keep the delta (TMPDIR may name another folder) in";

/// A delta in a file without a name.
#[derive(Debug)]
pub struct Spooled {
    /// The file.
    pub file: File,
    /// Its length in bytes.
    pub len: u64,
    /// Where it lies.
    pub folder: PathBuf,
}

/// Takes a delta from `input`, which `name` stands for in messages.
///
/// # Errors
/// What is no delta, or a newer one; a file that cannot be written, as where there is no room for what it announces.
pub fn spool(mut input: impl Read, name: &Path) -> Result<Spooled, Error> {
    let refused = |source| Error::Delta { path: name.to_owned(), source };
    let reading = |e| refused(if is_end(&e) { DeltaError::NotADelta } else { DeltaError::Io(e) });
    let mut start = [0; 12];
    input.read_exact(&mut start).map_err(reading)?;
    let len = announced_len(&start).map_err(refused)?;
    let mut header = start.to_vec();
    header.resize(len as usize, 0);
    let cut = |actual| refused(DeltaError::WrongLength { expected: len.into(), actual });
    input.read_exact(&mut header[12..]).map_err(|e| if is_end(&e) { cut(12) } else { reading(e) })?;
    let expected = Header::decode(&header).map_err(refused)?.file_len();
    let folder = std::env::temp_dir();
    has_room(&folder, expected)?;
    let writing = Error::io(KEEPING, &folder);
    match store(&folder, &header, input.take(expected.saturating_sub(len.into()).saturating_add(1))) {
        Ok(file) => {
            let len = file.metadata().map_err(writing)?.len();
            Ok(Spooled { file, len, folder })
        }
        Err(Failure::Read(e)) => Err(refused(DeltaError::Io(e))),
        Err(Failure::Write(e)) => Err(writing(e)),
    }
}

/// Refuses what cannot fit before any of it fills the folder, which may be the memory of a small machine.
fn has_room(folder: &Path, needed: u64) -> Result<(), Error> {
    // Where the system does not tell, writing will. Root may use what is reserved, so all that is free counts.
    let Ok(system) = rustix::fs::statvfs(folder) else { return Ok(()) };
    let free = system.f_bfree.saturating_mul(system.f_frsize);
    if system.f_blocks == 0 || needed <= free {
        return Ok(());
    }
    let why = format!("it announces {}, and {} are free there", human(needed), human(free));
    Err(Error::io(KEEPING, folder)(io::Error::new(io::ErrorKind::StorageFull, why)))
}

fn is_end(e: &io::Error) -> bool {
    e.kind() == io::ErrorKind::UnexpectedEof
}

enum Failure {
    Read(io::Error),
    Write(io::Error),
}

/// One byte more than there should be is taken as well: it shows that something was appended.
fn store(folder: &Path, header: &[u8], mut rest: impl Read) -> Result<File, Failure> {
    let mut file = tempfile::tempfile_in(folder).map_err(Failure::Write)?;
    file.write_all(header).map_err(Failure::Write)?;
    let mut buffer = vec![0; 256 << 10];
    loop {
        let n = match rest.read(&mut buffer) {
            Ok(0) => return Ok(file),
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(Failure::Read(e)),
        };
        file.write_all(&buffer[..n]).map_err(Failure::Write)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_delta_is_kept_and_nothing_else() {
        let delta = include_bytes!("../testdata/good-example.delta");
        let taken = |bytes: &[u8]| spool(bytes, Path::new("-")).map(|spooled| spooled.len);
        assert_eq!(taken(delta).unwrap(), delta.len() as u64);
        // Too long or too short: whoever opens it will tell.
        assert_eq!(taken(&[&delta[..], &[7; 5000]].concat()).unwrap(), delta.len() as u64 + 1);
        assert_eq!(taken(&delta[..delta.len() - 3]).unwrap(), delta.len() as u64 - 3);
        for bad in [&b""[..], b"short", &[0; 100_000], &delta[..100]] {
            assert!(matches!(taken(bad), Err(Error::Delta { .. })), "{} bytes", bad.len());
        }
    }
}
