//! Names of failures for scripts: they stay what they are when messages are put better (spec/cli.md).

use crate::delta::DeltaError;
use crate::device::OpenError;
use crate::error::Error;

/// All codes, in the order of spec/cli.md.
pub const CODES: &[&str] = &[
    "file",
    "unusable-file",
    "delta-damaged",
    "delta-newer",
    "delta-memory",
    "signature-unusable",
    "qcow2-unusable",
    "delta-not-made",
    "target-missing",
    "target-wrong-kind",
    "target-busy",
    "target-no-permission",
    "target-read-only",
    "target-not-opened",
    "target-too-small",
    "target-misplaced",
    "target-other-content",
    "target-failed",
    "target-unreliable",
    "image-unusable",
    "declined",
    "interrupted",
    "stopped",
    "delta-not-kept",
    "result-not-written",
    "internal-error",
    "target-damaged",
];

impl Error {
    /// A name for scripts, one of [`CODES`].
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Io { .. } | Self::NotMade { .. } => "file",
            Self::Unusable { .. } => "unusable-file",
            Self::Delta { source, .. } => match source {
                DeltaError::Newer { .. } => "delta-newer",
                DeltaError::Memory { .. } => "delta-memory",
                _ => "delta-damaged",
            },
            Self::Signature { .. } => "signature-unusable",
            Self::Qcow2 { .. } => "qcow2-unusable",
            Self::Write(_) => "delta-not-made",
            Self::Open(e) => match e {
                OpenError::Missing { .. } => "target-missing",
                OpenError::WrongKind { .. } | OpenError::FileInDev { .. } | OpenError::Sectors { .. } => {
                    "target-wrong-kind"
                }
                OpenError::Busy { .. } => "target-busy",
                OpenError::Permission { .. } | OpenError::Denied { .. } => "target-no-permission",
                OpenError::ReadOnly { .. } | OpenError::Marked { .. } => "target-read-only",
                OpenError::Io { .. } => "target-not-opened",
            },
            Self::TooSmall { .. } => "target-too-small",
            Self::Misplaced { .. } => "target-misplaced",
            Self::Neither { .. } => "target-other-content",
            Self::Device(_) => "target-failed",
            Self::Unreliable { .. } => "target-unreliable",
            Self::Image { .. } => "image-unusable",
            Self::Declined => "declined",
            Self::Interrupted => "interrupted",
            Self::Stopped { .. } | Self::Unfinished { .. } | Self::SlotUnfinished { .. } => "stopped",
            Self::Unsaved { .. } => "delta-not-kept",
            Self::Unsaid { .. } => "result-not-written",
            Self::Bug { .. } => "internal-error",
            Self::Damaged { .. } => "target-damaged",
        }
    }

    /// Whether this run has, or may have, written to the target.
    #[must_use]
    pub fn target_written(&self) -> bool {
        match self {
            Self::Stopped { .. } | Self::Unfinished { .. } | Self::SlotUnfinished { .. } | Self::Unsaved { .. } => true,
            Self::Damaged { written, .. } | Self::Unsaid { written, .. } | Self::Bug { written, .. } => *written,
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_listed_and_tell_whether_the_target_was_written() {
        let source = std::io::Error::other("x");
        let path = std::path::PathBuf::from("x");
        let busy = Error::Open(OpenError::Busy { path, by: "x".into() });
        let damaged = |written| Error::Damaged { name: "x".into(), why: "x".into(), written };
        let device = crate::device::DeviceError { operation: "x", name: "x".into(), offset: 0, len: 0, source };
        let cases = [
            (busy, "target-busy", false),
            (Error::Device(device), "target-failed", false),
            (Error::stopped("x".into(), 0, &"x"), "stopped", true),
            (Error::unfinished("x".into(), 5, "x".into(), "x"), "stopped", true),
            (damaged(true), "target-damaged", true),
            (damaged(false), "target-damaged", false),
        ];
        for (error, code, written) in cases {
            assert_eq!((error.code(), error.target_written()), (code, written));
            assert!(CODES.contains(&code));
        }
    }
}
