//! The command line: types and help, no logic.

use blkpatch::delta::label::Label;
use blkpatch::format::Format;
use blkpatch::outlet::is_standard;
use blkpatch::packed::Packing;
use blkpatch::signature::BLOCK_LEAST;
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::path::{Path, PathBuf};

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
    /// Print what came of it as JSON on standard output (see spec/cli.md)
    #[arg(long, global = true)]
    pub json: bool,
    /// How to show progress on standard error
    #[arg(long, global = true, value_enum, default_value_t = ProgressArg::Auto, value_name = "HOW")]
    pub progress: ProgressArg,
}

impl Cli {
    /// The refusal of two things that both want standard output.
    pub fn two_outputs(&self) -> Option<clap::Error> {
        let output = match &self.verb {
            Verb::Diff(args) => &args.output,
            Verb::Sign(args) => &args.output,
            _ => return None,
        };
        let both = self.json && is_standard(output);
        let kind = clap::error::ErrorKind::ArgumentConflict;
        both.then(|| <Self as clap::CommandFactory>::command().error(kind, "'--json' needs standard output: '-o FILE'"))
    }
}

/// How to show progress.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ProgressArg {
    /// A bar at a terminal, otherwise a line every ten seconds
    Auto,
    /// Lines, also at a terminal
    Lines,
    /// JSON, one object a line (see spec/cli.md)
    Json,
    /// Nothing
    None,
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Compare two images and write a delta
    #[command(
        override_usage = "blkpatch diff [OPTIONS] --output <DELTA> <OLD> <NEW>\n       \
            blkpatch diff [OPTIONS] --output <DELTA> --signature <SIGNATURE> <NEW>",
        after_help = "Examples:\n  blkpatch diff v1.img v2.img -o update.delta\n  \
            blkpatch diff --signature v1.sig v2.img -o update.delta\n\n\
            From a signature whole blocks are found again, wherever they lie, but not content\n\
            that changed a little: such a delta is larger than one made from the old image.\n\n\
            Data within the images that are compressed by gzip, zlib or zip are compared by\n\
            their content, as far as each file lies in one piece; it is kept meanwhile in\n\
            files without names beside DELTA.\n\n\
            Images compressed by gzip, xz, zstd or bzip2, recognised by their content, are\n\
            unpacked first: in the folder that TMPDIR names, else beside DELTA or in /tmp.\n\n\
            A file that begins like qcow2 and whose name ends in .qcow2 is read as qcow2,\n\
            with its backing files, which are named in a note. Where name and content\n\
            disagree it is refused: say which it is with '--format', and do not go by the\n\
            content: whoever uses a raw disk can make it look like a qcow2 image that names\n\
            any of your files as its backing file. Devices are always raw."
    )]
    Diff(DiffArgs),
    /// Write the signature of an image: the checksums of its blocks
    #[command(after_help = "It is librsync's: 'rdiff delta' reads it, and 'diff --signature' reads what\n\
            'rdiff -R rollsum -H md4 signature' writes.\n\n\
            Example:\n  blkpatch sign /dev/sdX -o device.sig")]
    Sign(SignArgs),
    /// Turn the old image on a device into the new one, in place, or build the new one beside the old
    #[command(
        after_help = "Nothing is written before the delta, the target's size and its content (with\n--old: that of OLD) have \
            been checked. After an interruption run the same command\nagain, with the same delta file, to finish.\n\n\
            The file of '--undo' is complete and durable before the first write. It is a\ndelta like any other, and goes \
            back also from a target that is patched only in part.\nIt is not overwritten if it exists; a run that is taken \
            up keeps it.\nIt takes at most 32 MiB of memory more than 'info' says.\n\n\
            Examples:\n  sudo blkpatch patch update.delta /dev/sdX\n  \
            sudo blkpatch patch --undo back.delta update.delta /dev/sdX\n  sudo blkpatch patch back.delta /dev/sdX\n  \
            curl -s https://example.org/update.delta | sudo blkpatch patch - /dev/sdX\n  \
            sudo blkpatch patch update.delta /dev/sdX3 --old /dev/sdX2\n  \
            blkpatch patch update.delta v2.img --old v1.img"
    )]
    Patch(PatchArgs),
    /// Make a device hold an image, writing only the blocks that differ
    #[command(
        after_help = "Where the image is at hand, no delta is needed. What is right already is not\nwritten, what is written \
            is read back and compared. After an interruption run\nthe same command again. \
            With '--undo' and '--save-delta' it takes at most 96 MiB\nof memory, beside unpacking IMAGE.\n\n\
            A file or stream that is compressed by gzip, xz, zstd or bzip2 is unpacked as it\nis read; its content counts, \
            not its name.\n\n\
            A file that begins like qcow2 and whose name ends in .qcow2 is read as qcow2,\nwith its backing files, \
            which are named in a note. Where name and content\ndisagree it is refused: say which it is with '--format'. \
            Devices, pipes and\nTARGET are never qcow2.\n\n\
            Exit codes: 0 done, or already equal; 1 refused or failed, target untouched;\n2 usage; 3 stopped after writing \
            began.\n\n\
            Examples:\n  sudo blkpatch sync v2.img /dev/sdX\n  sudo blkpatch sync v2.img.xz /dev/sdX\n  \
            ssh server cat v2.img.zst | sudo blkpatch sync - /dev/sdX\n  \
            sudo blkpatch sync --undo back.delta v2.img /dev/sdX\n  \
            sudo blkpatch sync --save-delta v2.delta v2.img /dev/sdX"
    )]
    Sync(SyncArgs),
    /// Write a delta as a qcow2 overlay on the old image, to try the new one in QEMU
    #[command(after_help = "OLD is only read, and checked first. The overlay names it as its backing file:\n\
            by its bare name where both lie in one folder, else by its whole path. OLD must\n\
            not change as long as the overlay is used. On a compressed OLD, which QEMU\n\
            cannot read, the result has no backing file, and holds all of the new image.\n\n\
            Example:\n  blkpatch export update.delta --old v1.img -o try.qcow2\n  \
            qemu-system-x86_64 -m 1G -drive file=try.qcow2")]
    Export(ExportArgs),
    /// Say which image a device holds: new, old, convertible or neither
    #[command(after_help = "Exit code: 0 new, 10 old, 11 convertible (neither, but 'patch' gives the new\nimage), \
            12 neither; 1 for a failure.\n\nExample:\n  sudo blkpatch verify update.delta /dev/sdX")]
    Verify(VerifyArgs),
    /// Show what a delta is, what it touches and the memory it needs
    #[command(after_help = "Example:\n  blkpatch info update.delta")]
    Info(InfoArgs),
}

impl Verb {
    /// Its name on the command line.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Diff(_) => "diff",
            Self::Sign(_) => "sign",
            Self::Patch(_) => "patch",
            Self::Sync(_) => "sync",
            Self::Export(_) => "export",
            Self::Verify(_) => "verify",
            Self::Info(_) => "info",
        }
    }

    /// Whether nothing is to be asked.
    pub fn yes(&self) -> bool {
        match self {
            Self::Patch(args) => args.yes,
            Self::Sync(args) => args.yes,
            _ => false,
        }
    }
}

/// Arguments of `diff`.
#[derive(Debug, Args)]
pub struct DiffArgs {
    /// The images, the old one first: files, also compressed or qcow2, or block devices
    #[arg(required = true, num_args = 1..=2, value_names = ["OLD", "NEW"])]
    pub images: Vec<PathBuf>,
    /// Take this signature of the old image in place of the image
    #[arg(long)]
    pub signature: Option<PathBuf>,
    /// The delta, or - for standard output; it appears only when it is complete
    #[arg(short, long, value_name = "DELTA")]
    pub output: PathBuf,
    /// From 1 (fast) to 9 (smallest)
    #[arg(long, default_value_t = 6, value_parser = clap::value_parser!(u32).range(1..=9))]
    pub level: u32,
    /// A line of text that travels in the delta: product, versions, a date
    #[arg(long, value_name = "TEXT")]
    pub label: Option<Label>,
    /// Threads to use; the delta does not depend on it [default: all cores]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub threads: Option<u32>,
    /// Memory for the index of the old image, or for its signature and the index of that, such as 256M
    #[arg(long, default_value = "512M", value_parser = parse_size, value_name = "SIZE")]
    pub memory: u64,
    /// Format of the images, or of OLD and of NEW, as in raw,qcow2
    #[arg(long, value_enum, default_value = "auto", value_delimiter = ',', num_args = 1, value_name = "FORMAT")]
    pub format: Vec<FormatArg>,
}

/// Arguments of `sign`.
#[derive(Debug, Args)]
pub struct SignArgs {
    /// The image: a file, also compressed or qcow2, or a block device
    pub image: PathBuf,
    /// The signature, or - for standard output; it appears only when it is complete
    #[arg(short, long, value_name = "SIGNATURE")]
    pub output: PathBuf,
    /// Bytes of a block: smaller ones find more, and make the signature larger
    #[arg(long, default_value = "4K", value_parser = parse_block, value_name = "SIZE")]
    pub block: u32,
    /// Bytes of each strong checksum
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(4..=16), value_name = "BYTES")]
    pub strong: u32,
    /// Format of the image
    #[arg(long, value_enum, default_value_t = FormatArg::Auto)]
    pub format: FormatArg,
}

/// Arguments of `patch`.
#[derive(Debug, Args)]
pub struct PatchArgs {
    /// The delta, or - for standard input
    pub delta: PathBuf,
    /// The block device, or the image file, to patch; with --old, the one to build the new image in
    pub target: PathBuf,
    /// Read the old image from this device or file (also compressed, or qcow2), which is never written, and build all of
    /// the new one in TARGET: a device, whatever it holds, or a file, which appears only when it is complete
    #[arg(long, value_name = "OLD", conflicts_with_all = ["verify", "undo"])]
    pub old: Option<PathBuf>,
    /// Format of OLD
    #[arg(long, value_enum, default_value_t = FormatArg::Auto, requires = "old")]
    pub format: FormatArg,
    /// How much to check; with --old it is always everything
    #[arg(long, value_enum, default_value_t = VerifyArg::Full)]
    pub verify: VerifyArg,
    /// Check everything and say what would be written, but write nothing
    #[arg(long)]
    pub dry_run: bool,
    /// First keep what will be overwritten in this file, a delta that goes back
    #[arg(long, value_name = "FILE")]
    pub undo: Option<PathBuf>,
    /// Do not ask before a device is written; off a terminal nothing is asked
    #[arg(long, short)]
    pub yes: bool,
    /// Refuse deltas that need more memory than this, such as 64M
    #[arg(long, default_value = "1G", value_parser = parse_size, value_name = "SIZE")]
    pub memory_limit: u64,
}

/// Arguments of `sync`.
#[derive(Debug, Args)]
pub struct SyncArgs {
    /// The image: a file, also compressed or qcow2, a block device, or - for standard input
    pub image: PathBuf,
    /// The block device, or the image file, that is to hold it; a file gets the image's length
    pub target: PathBuf,
    /// Say how much would be written, but write nothing
    #[arg(long)]
    pub dry_run: bool,
    /// First keep what will be overwritten in this file, a delta that goes back
    #[arg(long, value_name = "FILE")]
    pub undo: Option<PathBuf>,
    /// Keep what is written, or with '--dry-run' would be, as a delta for the next such device
    #[arg(long, value_name = "FILE")]
    pub save_delta: Option<PathBuf>,
    /// Do not ask before a device is written; off a terminal nothing is asked
    #[arg(long, short)]
    pub yes: bool,
    /// Format of the image
    #[arg(long, value_enum, default_value_t = FormatArg::Auto)]
    pub format: FormatArg,
}

/// Arguments of `export`.
#[derive(Debug, Args)]
pub struct ExportArgs {
    /// The delta
    pub delta: PathBuf,
    /// The old image: a file, also compressed or qcow2, or a block device
    #[arg(long)]
    pub old: PathBuf,
    /// The overlay; it appears only when it is complete
    #[arg(short, long, value_name = "OVERLAY")]
    pub output: PathBuf,
    /// Format of the old image
    #[arg(long, value_enum, default_value_t = FormatArg::Auto)]
    pub format: FormatArg,
    /// Refuse deltas that need more memory than this, such as 64M
    #[arg(long, default_value = "1G", value_parser = parse_size, value_name = "SIZE")]
    pub memory_limit: u64,
}

/// Arguments of `verify`.
#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// The delta, or - for standard input
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
    /// The delta, or - for standard input
    pub delta: PathBuf,
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

/// The format of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum FormatArg {
    /// Compressed where a file begins so, qcow2 where its name says so too, else raw
    Auto,
    /// The bytes as they are, whatever they look like
    Raw,
    /// qcow2, read with its backing files
    Qcow2,
    /// Compressed by gzip
    Gzip,
    /// Compressed by xz
    Xz,
    /// Compressed by zstd
    Zstd,
    /// Compressed by bzip2
    Bzip2,
}

impl FormatArg {
    /// What it means.
    pub fn format(self) -> Format {
        match self {
            Self::Auto => Format::Auto,
            Self::Raw => Format::Raw,
            Self::Qcow2 => Format::Qcow2,
            Self::Gzip => Format::Packed(Packing::Gzip),
            Self::Xz => Format::Packed(Packing::Xz),
            Self::Zstd => Format::Packed(Packing::Zstd),
            Self::Bzip2 => Format::Packed(Packing::Bzip2),
        }
    }
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

/// Reads the length of a signature's block.
fn parse_block(text: &str) -> Result<u32, String> {
    let len = parse_size(text)?;
    u32::try_from(len).ok().filter(|len| (BLOCK_LEAST..=16 << 20).contains(len)).ok_or_else(|| "from 128 to 16M".into())
}

impl DiffArgs {
    /// The formats of the old and of the new image.
    pub fn formats(&self) -> (Format, Format) {
        match &self.format[..] {
            [old, new] => (old.format(), new.format()),
            [both, ..] => (both.format(), both.format()),
            [] => Default::default(),
        }
    }

    /// The old image, or its signature, and the new image.
    pub fn inputs(&self) -> Result<(DiffFrom<'_>, &Path), clap::Error> {
        if self.format.len() > 2 {
            return Err(usage("'--format' takes one format, or those of the old and of the new image"));
        }
        match (&self.signature, &self.images[..]) {
            (None, [old, new]) => Ok((DiffFrom::Image(old), new)),
            (Some(signature), [new]) => Ok((DiffFrom::Signature(signature), new)),
            (None, _) => Err(usage("give the old and the new image, or '--signature' and the new image")),
            (Some(_), _) => Err(usage("with '--signature', give only the new image")),
        }
    }
}

/// What stands for the old image.
#[derive(Clone, Copy, Debug)]
pub enum DiffFrom<'a> {
    /// Itself.
    Image(&'a Path),
    /// Its signature.
    Signature(&'a Path),
}

fn usage(what: &str) -> clap::Error {
    use clap::CommandFactory;
    let mut command = Cli::command();
    command.build();
    let diff = command.find_subcommand_mut("diff").cloned();
    diff.unwrap_or(command).error(clap::error::ErrorKind::WrongNumberOfValues, what)
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
