#!/usr/bin/env python3
"""What being restartable costs: scratch, barriers and batches of real and of adversarial pairs, as a table.

    cargo build --release && benches/order.py [--pairs DIR [NAME ...]] [--blocks N] [--work DIR]

DIR holds NAME.old and NAME.new. The adversarial pairs are made here, of N blocks of random content (so that no block
is free), and every one of their deltas is applied and the result compared. `saves` write old bytes that are in danger
to scratch; `scratch` is their share of all that is written; a barrier is a sync that waits for the medium.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path

BLKPATCH = Path(__file__).resolve().parent.parent / "target/release/blkpatch"
BLOCK = 4096


def adversarial(count):
    """(name, old, new); every kind of scratch is needed."""
    rng = random.Random(5)
    base = rng.randbytes(count * BLOCK)
    order = list(range(count))
    rng.shuffle(order)
    half = count // 2 * BLOCK
    yield "all blocks permuted", base, b"".join(base[i * BLOCK:(i + 1) * BLOCK] for i in order)
    yield "two halves swapped", base, base[half:] + base[:half]
    yield "rotated by a block", base, base[BLOCK:] + base[:BLOCK]
    for name, shift in (("1 byte", 1), ("512 bytes", 512), ("1 MiB", 1 << 20)):
        fresh = rng.randbytes(shift)
        yield f"shifted up by {name}", base, fresh + base[:-shift]
        yield f"shifted down by {name}", base, base[shift:] + fresh
    yield "every block from itself", base, b"".join(base[i + 100:i + BLOCK] + base[i:i + 100] for i in range(0, len(base), BLOCK))
    yield "pairs of blocks swapped", base, b"".join(base[(i ^ 1) * BLOCK:((i ^ 1) + 1) * BLOCK] for i in range(count & ~1))
    # As a database that is compacted moves its pages: two tables that lay in turns lie one behind the other, not in whole blocks.
    thirds = [base[i:i + 4000] for i in range(0, len(base), 4000)]
    yield "pages unriffled", base, b"".join(thirds[0::2] + thirds[1::2])
    yield "grown from nothing", b"", base[:5_000_000]
    yield "cut to nothing", base[:5_000_001], b""
    yield "zeros to random", bytes(count * BLOCK // 4), base[:count * BLOCK // 4]
    yield "random to zeros", base[:count * BLOCK // 4], bytes(count * BLOCK // 4)
    yield "odd lengths, moved", base[:10_000_001], base[4096:9_000_003]


def row(name, old, new, folder, apply):
    delta, target = folder / "delta", folder / "target"
    delta.unlink(missing_ok=True)
    subprocess.run([BLKPATCH, "-q", "diff", old, new, "-o", delta], check=True)
    info = json.loads(subprocess.run([BLKPATCH, "info", "--json", delta], check=True, capture_output=True).stdout)
    if apply:
        subprocess.run(["cp", old, target], check=True)
        subprocess.run([BLKPATCH, "-q", "patch", delta, target], check=True)
        subprocess.run(["cmp", target, new], check=True)
    written = info["changed_blocks"] + info["scratch_blocks"]
    share = 100 * info["scratch_blocks"] / max(written, 1)
    print(f"| {name} | {info['new']['bytes'] >> 20:,} | {info['changed_blocks']:,} | {info['delta_bytes']:,} | {info['batches']:,} "
          f"| {info['saves']:,} | {info['scratch_blocks']:,} ({share:.1f} %) | {info['barriers']:,} |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--pairs", type=Path)
    parser.add_argument("--blocks", type=int, default=32000)
    parser.add_argument("--work", type=Path)
    options = parser.parse_args()
    print("| pair | image, MiB | changed blocks | delta, bytes | batches | saves | scratch blocks | barriers |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    with tempfile.TemporaryDirectory(dir=options.work) as folder:
        folder = Path(folder)
        if options.pairs:
            for name in options.names or sorted(path.stem for path in options.pairs.glob("*.old")):
                row(name, options.pairs / f"{name}.old", options.pairs / f"{name}.new", folder, apply=False)
        for name, old, new in adversarial(options.blocks):
            (folder / "old").write_bytes(old)
            (folder / "new").write_bytes(new)
            row(name, folder / "old", folder / "new", folder, apply=True)


if __name__ == "__main__":
    sys.exit(main())
