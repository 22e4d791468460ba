#!/usr/bin/env python3
"""Compares blkpatch with the tools found on PATH, on the same pairs of images, in one run.

    cargo build --release && benches/compare.py --pairs DIR [--runs N] [NAME ...]

DIR holds NAME.old and NAME.new, as shared/workloads/pairs.sh makes them; without names all pairs of DIR are taken.
Builds nothing. Every delta is applied, and the result compared with the new image. Prints a table per pair: delta
size, wall and CPU seconds and peak memory of making the delta, wall seconds and peak memory of applying it, and
ratios to the reference tool, xdelta3 -9. With several runs tools take turns, and the minimum counts. Files are read
once before, so that they lie in the page cache as far as it reaches; 'memory' leaves out mapped file pages.

    --json FILE   all figures as JSON         --plot FILE   delta size against time, as SVG
    --tools LIST  only these, by prefix       --limit SEC   skip a tool where an earlier pair took longer per GiB
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

BLKPATCH = Path(__file__).resolve().parent.parent / "target/release/blkpatch"
GIB = 1 << 30
REFERENCE = "xdelta3 -9 -S lzma"


class Tool:
    """How a delta is made and applied. Commands are shell text with {old} {new} {delta} {out} {tmp}."""

    def __init__(self, name, program, make, apply, most=None, in_place=False):
        self.name, self.program, self.make, self.apply = name, program, make, apply
        self.most, self.in_place = most, in_place


def tools():
    out = []
    for level in (1, 3, 6, 9):
        out.append(Tool(f"blkpatch --level {level}", BLKPATCH, f"{BLKPATCH} -q diff --level {level} {{old}} {{new}} -o {{delta}}",
                        f"{BLKPATCH} -q patch {{delta}} {{out}}", in_place=True))
    for name, options in (("xdelta3 -1", "-1"), (REFERENCE, "-9 -S lzma")):
        out.append(Tool(name, "xdelta3", f"xdelta3 -e -f {options} -B 2147483648 -s {{old}} {{new}} {{delta}}",
                        "xdelta3 -d -f -B 2147483648 -s {old} {delta} {out}"))
    for level in (3, 19):
        out.append(Tool(f"zstd -{level} --patch-from", "zstd",
                        f"zstd -q -f -{level} --long=31 --patch-from={{old}} {{new}} -o {{delta}}",
                        "zstd -q -f -d --long=31 --memory=2048MB --patch-from={old} {delta} -o {out}", most=2 * GIB))
    out.append(Tool("rdiff + zstd -19", "rdiff",
                    "rdiff -f -b 4096 signature {old} {tmp}/sig && rdiff -f delta {tmp}/sig {new} - | zstd -q -19 -T0 -f -o {delta}",
                    "zstd -q -d -c {delta} | rdiff -f patch {old} - {out}"))
    out.append(Tool("hdiffz -s-64", "hdiffz", "hdiffz -f -s-64 -c-zstd-21-24 {old} {new} {delta}", "hpatchz -f {old} {delta} {out}"))
    out.append(Tool("bsdiff", "bsdiff", "bsdiff {old} {new} {delta}", "bspatch {old} {out} {delta}", most=64 << 20))
    out.append(Tool("rsync batch + zstd -19", "rsync",
                    "rsync --no-whole-file --inplace --only-write-batch={tmp}/batch {new} {old} && zstd -q -19 -T0 -f {tmp}/batch -o {delta}",
                    "zstd -q -d -f {delta} -o {tmp}/batch && rsync --inplace --read-batch={tmp}/batch {out}", in_place=True))
    out.append(Tool("qcow2 overlay + zstd -19", "qemu-img",
                    "qemu-img create -q -f qcow2 -b {new} -F raw {tmp}/q && qemu-img rebase -b {old} -F raw {tmp}/q && "
                    "zstd -q -19 -T0 -f {tmp}/q -o {delta}",
                    "zstd -q -d -f {delta} -o {tmp}/q && qemu-img rebase -u -b {out} -F raw {tmp}/q && qemu-img commit -q {tmp}/q",
                    in_place=True))
    return [tool for tool in out if shutil.which(str(tool.program))]


class Watch(threading.Thread):
    """Samples the anonymous memory of all processes of a session."""

    def __init__(self, session):
        super().__init__(daemon=True)
        self.session, self.peak, self.over = session, 0, threading.Event()

    def run(self):
        while not self.over.wait(0.02):
            self.peak = max(self.peak, sum(self.anonymous()))

    def anonymous(self):
        for entry in os.scandir("/proc"):
            if not entry.name.isdigit():
                continue
            try:
                if os.getsid(int(entry.name)) != self.session:
                    continue
                for line in open(f"/proc/{entry.name}/status", encoding="ascii", errors="replace"):
                    if line.startswith("RssAnon:"):
                        yield int(line.split()[1]) * 1024
            except OSError:
                continue


def run(command):
    """Runs shell text; returns wall seconds, CPU seconds, and peak memory in bytes."""
    start = time.monotonic()
    child = subprocess.Popen(["bash", "-c", "set -eo pipefail; " + command], start_new_session=True,
                             stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    watch = Watch(child.pid)
    watch.start()
    said = child.stderr.read()
    _, status, usage = os.wait4(child.pid, 0)
    wall = time.monotonic() - start
    watch.over.set()
    watch.join()
    if status != 0:
        raise RuntimeError(said.decode(errors="replace").strip()[-300:] or f"status {status}")
    # Short runs end before they are sampled; what the kernel counted then is an upper bound.
    return wall, usage.ru_utime + usage.ru_stime, watch.peak or usage.ru_maxrss * 1024


def measure(tool, old, new, folder, check):
    """One round: make, apply, compare. Returns the figures."""
    out, delta = folder / "out", folder / "delta"
    names = {"old": old, "new": new, "delta": delta, "out": out, "tmp": folder}
    for path in (out, delta):
        path.unlink(missing_ok=True)
    made = run(tool.make.format(**names))
    figures = {"bytes": delta.stat().st_size, "diff_s": made[0], "diff_cpu_s": made[1], "diff_memory": made[2]}
    if check:
        if tool.in_place:
            subprocess.run(["cp", "--sparse=always", old, out], check=True)
        applied = run(tool.apply.format(**names))
        subprocess.run(["cmp", "-n", str(new.stat().st_size), out, new], check=True)
        figures |= {"patch_s": applied[0], "patch_memory": applied[2]}
    return figures


def warm(*paths):
    for path in paths:
        subprocess.run(["cat", path], stdout=subprocess.DEVNULL, check=True)


def better(best, figures):
    return figures if best is None else {key: min(value, best.get(key, value)) for key, value in (best | figures).items()}


def compare(name, old, new, chosen, options, slow):
    size = old.stat().st_size + new.stat().st_size
    data = max(1, 512 * (old.stat().st_blocks + new.stat().st_blocks))
    best = {}
    for turn in range(options.runs):
        for tool in chosen:
            if tool.name in slow or (tool.most and size > 2 * tool.most):
                continue
            with tempfile.TemporaryDirectory(dir=options.work) as folder:
                warm(old, new)
                try:
                    figures = measure(tool, old, new, Path(folder), check=turn == 0)
                except (RuntimeError, subprocess.CalledProcessError) as e:
                    print(f"{name}: {tool.name} failed: {e}", file=sys.stderr)
                    slow.add(tool.name)
                    continue
            best[tool.name] = better(best.get(tool.name), figures)
            print(f"{name}: {tool.name}: {figures}", file=sys.stderr)
    for tool, figures in best.items():
        if figures["diff_s"] / (data / GIB) > options.limit:
            slow.add(tool)
    return best


def table(name, best):
    reference = best.get(REFERENCE)
    print(f"\n### {name}\n")
    print("| tool | delta, bytes | of xdelta3 -9 | diff, s | of xdelta3 -9 | CPU, s | memory, MiB | patch, s | memory, MiB |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for tool, f in sorted(best.items(), key=lambda item: item[1]["bytes"]):
        ratio = lambda key: f"{f[key] / reference[key]:.2f}" if reference else "-"
        mib = lambda key: f"{f[key] / (1 << 20):.0f}" if key in f else "-"
        print(f"| {tool} | {f['bytes']:,} | {ratio('bytes')} | {f['diff_s']:.1f} | {ratio('diff_s')} | {f['diff_cpu_s']:.1f} "
              f"| {mib('diff_memory')} | {f.get('patch_s', 0):.1f} | {mib('patch_memory')} |")


def plot(results, path):
    """Delta size against time, one panel a pair, both logarithmic, as plain SVG."""
    import math
    width, height, margin = 420, 320, 60
    parts, panels = [], [(name, best) for name, best in results.items() if len(best) > 1]
    for i, (name, best) in enumerate(panels):
        left, top = (i % 2) * width, (i // 2) * height
        xs = [math.log10(max(f["diff_s"], 0.01)) for f in best.values()]
        ys = [math.log10(f["bytes"]) for f in best.values()]
        (x0, x1), (y0, y1) = ((min(v) - 0.12, max(v) + 0.35) for v in (xs, ys))
        parts.append(f'<text x="{left + margin}" y="{top + 24}" font-weight="bold">{name}</text>')
        parts.append(f'<rect x="{left + margin}" y="{top + 34}" width="{width - margin - 20}" height="{height - 84}" '
                     'fill="none" stroke="#999"/>')
        at_x = lambda x: left + margin + (x - x0) / (x1 - x0) * (width - margin - 20)
        at_y = lambda y: top + height - 50 - (y - y0) / (y1 - y0) * (height - 84)
        for tool, f in best.items():
            x, y = at_x(math.log10(max(f["diff_s"], 0.01))), at_y(math.log10(f["bytes"]))
            color = "#c22" if tool.startswith("blkpatch") else "#357"
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{color}"/>')
            parts.append(f'<text x="{x + 6:.1f}" y="{y - 4:.1f}" font-size="9" fill="{color}">{tool}: '
                         f'{human(f["bytes"])}, {f["diff_s"]:.1f} s</text>')
        parts.append(f'<text x="{left + margin}" y="{top + height - 32}" font-size="10">seconds to make the delta, logarithmic</text>')
        parts.append(f'<text x="{left + 50}" y="{top + height - 60}" font-size="10" transform="rotate(-90 {left + 50} '
                     f'{top + height - 60})">bytes of the delta, logarithmic</text>')
    rows = (len(panels) + 1) // 2
    path.write_text(f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {2 * width} {rows * height}" '
                    f'font-family="sans-serif" font-size="13"><rect width="100%" height="100%" fill="white"/>'
                    + "\n".join(parts) + "</svg>\n")


def human(n):
    return f"{n / 1e6:.2f} MB" if n >= 1e6 else f"{n / 1e3:.1f} kB"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--pairs", type=Path, required=True)
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--tools", default="")
    parser.add_argument("--limit", type=float, default=400)
    parser.add_argument("--work", type=Path, default=None, help="where deltas and results are put [default: beside the pairs]")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    options.work = options.work or options.pairs
    names = options.names or sorted(path.stem for path in options.pairs.glob("*.old"))
    wanted = [text for text in options.tools.split(",") if text]
    chosen = [tool for tool in tools() if not wanted or any(tool.name.startswith(text) for text in wanted)]
    results, slow = {}, set()
    for name in names:
        old, new = options.pairs / f"{name}.old", options.pairs / f"{name}.new"
        results[name] = compare(name, old, new, chosen, options, slow)
        if options.json:
            options.json.write_text(json.dumps(results, indent=1) + "\n")
    cpu = next((line.split(":")[1].strip() for line in open("/proc/cpuinfo", encoding="ascii") if "model name" in line), "?")
    print(f"{time.strftime('%Y-%m-%d')}, {os.cpu_count()} cores ({cpu}), "
          f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / GIB:.0f} GiB, minimum of {options.runs}")
    for name, best in results.items():
        table(name, best)
    if options.plot:
        plot(results, options.plot)


if __name__ == "__main__":
    main()
