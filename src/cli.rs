//! The command line: types and help, no logic.

use clap::{Args, Parser, Subcommand, ValueEnum};
use std::path::PathBuf;

/// Update a disk image in place, on its device, by shipping only what changed.
#[derive(Debug, Parser)]
#[command(
    version,
    max_term_width = 80,
    after_help = "Exit codes: 0 done or already up to date; 1 refused or failed, target untouched;\n\
        2 usage; 3 stopped after writing began: run the same command again to resume;\n\
        4 damaged: only a full write helps. 'verify': 0 new, 10 old, 11 convertible,\n12 neither.\n\n\
        Example:\n  blkpatch diff v1.img v2.img -o update.delta\n  sudo blkpatch patch update.delta /dev/sdX"
)]
pub struct Cli {
    /// What to do
    #[command(subcommand)]
    pub verb: Verb,
    /// Print nothing but errors and what was asked for
    #[arg(long, short, global = true)]
    pub quiet: bool,
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Compare two images and write a delta
    #[command(after_help = "Example:\n  blkpatch diff v1.img v2.img -o update.delta")]
    Diff(DiffArgs),
    /// Turn the old image on a device into the new one, in place, or build the new one beside the old
    #[command(
        after_help = "Nothing is written before the delta, the target's size and its content (with\n--old: that of OLD) have \
            been checked. After an interruption run the same command\nagain, with the same delta file, to finish.\n\n\
            Examples:\n  sudo blkpatch patch update.delta /dev/sdX\n  \
            sudo blkpatch patch update.delta /dev/sdX3 --old /dev/sdX2\n  \
            blkpatch patch update.delta v2.img --old v1.img"
    )]
    Patch(PatchArgs),
    /// Say which image a device holds: new, old, convertible or neither
    #[command(after_help = "Exit code: 0 new, 10 old, 11 convertible (neither, but 'patch' gives the new\nimage), \
            12 neither; 1 for a failure.\n\nExample:\n  sudo blkpatch verify update.delta /dev/sdX")]
    Verify(VerifyArgs),
    /// Show what a delta is, what it touches and the memory it needs
    #[command(after_help = "Example:\n  blkpatch info update.delta")]
    Info(InfoArgs),
}

/// Arguments of `diff`.
#[derive(Debug, Args)]
pub struct DiffArgs {
    /// The old image: a file or a block device
    pub old: PathBuf,
    /// The new image: a file or a block device
    pub new: PathBuf,
    /// The delta; it appears only when it is complete
    #[arg(short, long, value_name = "DELTA")]
    pub output: PathBuf,
    /// From 1 (fast) to 9 (smallest)
    #[arg(long, default_value_t = 6, value_parser = clap::value_parser!(u32).range(1..=9))]
    pub level: u32,
    /// Threads to use; the delta does not depend on it [default: all cores]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub threads: Option<u32>,
    /// Memory for the index of the old image, such as 256M
    #[arg(long, default_value = "512M", value_parser = parse_size, value_name = "SIZE")]
    pub memory: u64,
}

/// Arguments of `patch`.
#[derive(Debug, Args)]
pub struct PatchArgs {
    /// The delta
    pub delta: PathBuf,
    /// The block device, or the image file, to patch; with --old, the one to build the new image in
    pub target: PathBuf,
    /// Read the old image from this device or file, which is never written, and build all of the new one in TARGET: a
    /// device, whatever it holds, or a file, which appears only when it is complete
    #[arg(long, value_name = "OLD", conflicts_with = "verify")]
    pub old: Option<PathBuf>,
    /// How much to check; with --old it is always everything
    #[arg(long, value_enum, default_value_t = VerifyArg::Full)]
    pub verify: VerifyArg,
    /// Check everything and say what would be written, but write nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Refuse deltas that need more memory than this, such as 64M
    #[arg(long, default_value = "1G", value_parser = parse_size, value_name = "SIZE")]
    pub memory_limit: u64,
}

/// Arguments of `verify`.
#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// The delta
    pub delta: PathBuf,
    /// The block device, or the image file, to look at
    pub target: PathBuf,
    /// How much to check
    #[arg(long, value_enum, default_value_t = VerifyArg::Full)]
    pub verify: VerifyArg,
    /// Refuse deltas that need more memory than this, such as 64M
    #[arg(long, default_value = "1G", value_parser = parse_size, value_name = "SIZE")]
    pub memory_limit: u64,
}

/// Arguments of `info`.
#[derive(Debug, Args)]
pub struct InfoArgs {
    /// The delta
    pub delta: PathBuf,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// How much to check.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum VerifyArg {
    /// Read the whole image before and after
    All,
    /// Read the whole image before; after, read back the parts that were touched
    Full,
    /// Read only what the delta reads, and what it wrote
    Touched,
}

/// Reads `512`, `64K`, `256M`, `1G`, `2T`: bytes, or powers of 1024.
fn parse_size(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let unit = match text[digits.len()..].to_ascii_uppercase().trim_end_matches("IB").trim_end_matches('B') {
        "" => 1,
        "K" => 1 << 10,
        "M" => 1 << 20,
        "G" => 1 << 30,
        "T" => 1u64 << 40,
        _ => return Err("use a number with K, M, G or T, such as 256M".into()),
    };
    let number: u64 = digits.parse().map_err(|_| "use a number with K, M, G or T, such as 256M".to_owned())?;
    number.checked_mul(unit).ok_or_else(|| "that is more than 2^64 bytes".into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn sizes_are_read() {
        assert_eq!(parse_size("512"), Ok(512));
        assert_eq!(parse_size("256M"), Ok(256 << 20));
        assert_eq!(parse_size("1GiB"), Ok(1 << 30));
        assert!(parse_size("x").is_err() && parse_size("").is_err() && parse_size("99999999T").is_err());
    }
}
