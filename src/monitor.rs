//! Progress, as the library tells it; how it is shown is up to the program.

/// Listens to a verb at work. All methods may be called from any thread.
pub trait Monitor: Sync {
    /// A phase begins that will handle `total` bytes (0: unknown).
    fn phase(&self, name: &'static str, total: u64) {
        let _ = (name, total);
    }
    /// `bytes` more of the phase are done; where it writes, they are written, and durable only when
    /// [`Monitor::durable`] says so.
    fn advance(&self, bytes: u64) {
        let _ = bytes;
    }
    /// All by which a phase that writes has advanced so far is durable.
    fn durable(&self) {}
    /// The first change to the target is about to be made: from now on stopping leaves it between two images.
    fn writing(&self) {}
    /// A block device is about to be checked and then written: whether the user wants that. Asked before anything is
    /// written, and before anything is read at length, so that whoever answered may leave.
    fn confirm(&self, intent: &dyn Fn() -> Intent) -> bool {
        let _ = intent;
        true
    }
    /// Whether [`Monitor::confirm`] may ask somebody. If so, all that needs no reading at length is checked before.
    fn asks(&self) -> bool {
        true
    }
    /// Something the user should know that is not an error.
    fn note(&self, text: &str) {
        let _ = text;
    }
}

/// What is about to be done, for the user to look at.
#[derive(Clone, Debug)]
pub struct Intent {
    /// The target.
    pub target: String,
    /// What is known, in the order in which it is shown: a short name, or none where the line before goes on, and a text.
    pub facts: Vec<(&'static str, String)>,
}

/// Says nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Monitor for Silent {
    fn asks(&self) -> bool {
        false
    }
}
