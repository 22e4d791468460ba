#!/usr/bin/env python3
"""How time and memory of `diff` and `patch` grow with the images: 1, 2, 4 and 8 GiB of real data.

    tar -cf data.tar /usr /opt ...        # 8 GiB or more of whatever this machine has; not zeros
    cargo build --release && benches/growth.py --data data.tar --work DIR [--sizes 1,2,4,8] [--memory SIZE]

The old image is the beginning of the data. The new one has, in every 8 MiB, a few bytes inserted (so that everything
behind moves), a stretch of 20,000 bytes overwritten with data from elsewhere, and 200 addresses adjusted. Files are read
once before; memory is the peak of anonymous memory, sampled (mapped file pages left out). The result is compared.
"""

import argparse
import mmap
import random
import subprocess
from pathlib import Path

from compare import BLKPATCH, GIB, run, warm

PIECE = 8 << 20


def edit(old, new, size):
    """Writes the new image, of the same length."""
    chance = random.Random(1)
    with open(old, "rb") as source, open(new, "wb") as out:
        data = mmap.mmap(source.fileno(), size, access=mmap.ACCESS_READ)
        left = size
        for at in range(0, size, PIECE):
            piece = bytearray(data[at:min(size, at + PIECE)])
            spot = chance.randrange(len(piece) // 2)
            elsewhere = chance.randrange(size - 20_000)
            piece[spot:spot + 20_000] = data[elsewhere:elsewhere + 20_000]
            start = chance.randrange(len(piece) // 2)
            for i in range(start, min(len(piece), start + 200 * 40), 40):
                piece[i] = (piece[i] + 16) % 256
            piece[spot:spot] = chance.randbytes(chance.randrange(3, 300))
            out.write(piece[:left])
            left -= min(left, len(piece))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--sizes", default="1,2,4,8")
    parser.add_argument("--memory", default="512M")
    options = parser.parse_args()
    old, new, delta = (options.work / f"growth.{name}" for name in ("old", "new", "delta"))
    print("| GiB | delta, bytes | diff, s | s per GiB | CPU, s | memory, MiB | patch, s | memory, MiB |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for gib in (float(size) for size in options.sizes.split(",")):
        size = int(gib * GIB)
        subprocess.run(["dd", f"if={options.data}", f"of={old}", "bs=4M", "iflag=count_bytes,fullblock", f"count={size}",
                        "status=none"], check=True)
        if old.stat().st_size != size:
            raise SystemExit(f"{options.data} is shorter than {gib} GiB")
        edit(old, new, size)
        subprocess.run(["sync"], check=True)
        warm(old, new)
        delta.unlink(missing_ok=True)
        wall, cpu, memory = run(f"{BLKPATCH} -q diff --memory {options.memory} {old} {new} -o {delta}")
        patch, _, patch_memory = run(f"{BLKPATCH} -q patch {delta} {old}")
        subprocess.run(["cmp", old, new], check=True)
        print(f"| {gib:g} | {delta.stat().st_size:,} | {wall:.1f} | {wall / gib:.1f} | {cpu:.1f} | {memory / 2**20:.0f} | {patch:.1f} "
              f"| {patch_memory / 2**20:.0f} |", flush=True)
    for path in (old, new, delta):
        path.unlink()


if __name__ == "__main__":
    main()
