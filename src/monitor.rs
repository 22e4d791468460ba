//! Progress, as the library tells it; how it is shown is up to the program.

/// Listens to a verb at work. All methods may be called from any thread.
pub trait Monitor: Sync {
    /// A phase begins that will handle `total` bytes (0: unknown).
    fn phase(&self, name: &'static str, total: u64) {
        let _ = (name, total);
    }
    /// `bytes` more of the phase are done.
    fn advance(&self, bytes: u64) {
        let _ = bytes;
    }
    /// The first change to the target is about to be made: from now on stopping leaves it between two images.
    fn writing(&self) {}
    /// Something the user should know that is not an error.
    fn note(&self, text: &str) {
        let _ = text;
    }
}

/// Says nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Monitor for Silent {}
