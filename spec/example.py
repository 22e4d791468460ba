#!/usr/bin/env python3
"""The worked example of spec/format.md, chapter 11.

    spec/example.py images DIR         write old.img and new.img as the chapter describes them
    spec/example.py dump DELTA         print a delta as an annotated hex dump
    spec/example.py check DELTA DIR    apply the delta to DIR/old.img in memory, compare with DIR/new.img
    spec/example.py insert DELTA       put the dump of an existing delta into spec/format.md
    spec/example.py update BLKPATCH    make the delta with BLKPATCH, write testdata/good-example.{old,new,delta} and
                                       put the dump into spec/format.md

A small second reader of the format, in another language than the first (sections that are compressed need the program
`zstd`). It checks much less than a patcher must: it is for reading, never for patching.
"""

import pathlib
import subprocess
import sys
import tempfile
import zlib

BLOCK = 4096
KINDS = ["", "route", "batch table", "step kinds", "step lengths", "step sources", "difference gaps",
         "difference values", "literals", "pack", "label"]
STEPS = ["literal", "copy", "add", "zero", "copy-new", "add-new"]
BATCHES = ["data", "save", "zero"]


# ---------------------------------------------------------------------------------------------------------- images

def images():
    """Old and new image of chapter 11.1."""
    state, old = 1, bytearray()
    for _ in range(5 * BLOCK + 1000):
        state = (state * 1103515245 + 12345) & 0xFFFFFFFF
        old.append(state >> 16 & 0xFF)
    new = bytearray(old)
    new[1 * BLOCK:2 * BLOCK] = old[2 * BLOCK:3 * BLOCK]
    new[2 * BLOCK:3 * BLOCK] = old[1 * BLOCK:2 * BLOCK]
    new[3 * BLOCK:5 * BLOCK] = bytes(2 * BLOCK)
    last = bytearray(old[:1000])
    text = b"blkpatch writes only the blocks that change."
    last[400:400 + len(text)] = text
    for at in (100, 116, 132):
        last[at] = (last[at] + 5) & 0xFF
    new[5 * BLOCK:] = last
    return bytes(old), bytes(new)


# ---------------------------------------------------------------------------------------------------------- reading

class Reader:
    """Bytes read in order; remembers where each field lay for the dump."""

    def __init__(self, data, base=0, out=None):
        self.data, self.at, self.base, self.out = data, 0, base, out

    def take(self, size, name, show=None):
        raw = self.data[self.at:self.at + size]
        assert len(raw) == size, f"{name}: the bytes end early"
        if self.out is not None:
            self.out.append((self.base + self.at, raw, name if show is None else f"{name} = {show(raw)}"))
        self.at += size
        return raw

    def number(self, size, name, show=str):
        value = int.from_bytes(self.data[self.at:self.at + size], "little")
        self.take(size, name, lambda _: show(value))
        return value

    def varint(self, name, signed=False, show=str):
        value, shift, at = 0, 0, self.at
        while True:
            byte = self.data[at]
            value |= (byte & 0x7F) << shift
            shift, at = shift + 7, at + 1
            if byte < 0x80:
                break
        if signed:
            value = unzigzag(value)
        self.take(at - self.at, name, lambda _: show(value))
        return value

    def left(self):
        return len(self.data) - self.at


def unzigzag(number):
    return (number >> 1) ^ -(number & 1)


def brief(raw):
    return raw[:4].hex() + "…"


class Delta:
    """A delta, all fields read once in file order."""

    def __init__(self, data):
        self.out, self.sections, self.raw = [], [], {}
        self.step_kinds, self.step_lengths, self.step_sources, self.gaps, self.values = [], [], [], [], []
        self.read_header(Reader(data, 0, self.out))
        at = self.header_len
        for kind, codec, stored, raw_len in self.sections:
            self.out.append((at, b"", f"--- section {kind}: {KINDS[kind]}"))
            body = data[at:at + stored]
            packed = codec == 1
            if packed:
                self.out.append((at, body, "zstd frame"))
                body = subprocess.run(["zstd", "-dc"], input=body, stdout=subprocess.PIPE, check=True).stdout
            assert len(body) == raw_len
            out = None if packed else self.out
            if kind == 9:
                self.read_pack(Reader(body, at, out))
            else:
                self.raw[kind] = body
                self.read_section(kind, Reader(body, at, out))
            at += stored
        assert at == len(data), "bytes behind the end"

    def read_header(self, r):
        r.take(8, "magic")
        self.header_len = r.number(4, "header_len")
        r.number(2, "version")
        count = r.number(2, "section_count")
        r.number(8, "incompatible")
        r.number(8, "compatible")
        self.new_len = r.number(8, "new_len")
        self.new_crc = r.number(4, "new_crc", hex)
        r.number(4, "batch_bytes")
        r.number(4, "source_bytes")
        r.number(4, "batch_steps")
        r.number(8, "memory")
        r.take(32, "new_blake3", brief)
        for _ in range(count):
            kind = r.number(2, "kind", lambda v: f"{v} ({KINDS[v] if 0 < v < len(KINDS) else 'unknown'})")
            r.number(2, "flags")
            r.number(2, "route")
            codec, _ = r.number(1, "codec"), r.number(1, "window_log")
            stored, raw_len = r.number(8, "stored_len"), r.number(8, "raw_len")
            r.take(32, "blake3", brief)
            self.sections.append((kind, codec, stored, raw_len))
        r.take(32, "header_blake3", brief)
        assert r.at == self.header_len

    def read_pack(self, r):
        lengths = [r.varint(f"bytes of the {name}") for name in KINDS[1:9]]
        for kind, length in enumerate(lengths, 1):
            body = r.data[r.at:r.at + length]
            assert len(body) == length
            if length and r.out is not None:
                r.out.append((r.base + r.at, b"", f"--- in the pack: {KINDS[kind]}"))
            self.raw[kind] = body
            self.read_section(kind, Reader(body, r.base + r.at, r.out))
            r.at += length
        assert r.left() == 0

    def read_section(self, kind, r):
        if kind == 1:
            self.read_route(r)
        elif kind == 2:
            self.read_batches(r)
        elif kind == 3:
            self.step_kinds = [r.number(1, "kind", lambda v: f"{v} ({STEPS[v]})") for _ in range(r.left())]
        elif kind == 4:
            self.step_lengths = []
            while r.left():
                self.step_lengths.append(r.varint("length", show=lambda v: str(v) if v else "0: to the extent's end"))
        elif kind == 5:
            self.step_sources = []
            while r.left():
                self.step_sources.append(r.varint("source", signed=True, show=lambda v: f"{v:+}"))
        elif kind == 6:
            self.gaps = []
            while r.left():
                self.gaps.append(r.varint("gap"))
        elif kind == 7:
            self.values = []
            while r.left():
                self.values.append(r.varint("value", show=lambda n: f"guess {n}" if n < 4 else f"{unzigzag(n - 4):+}"))
        elif r.left():
            text = r.data.isascii()
            r.take(r.left(), KINDS[kind], (lambda raw: f'"{raw.decode()}"') if text else None)

    def read_route(self, r):
        self.old_known = r.number(4, "flags") & 1
        self.old_crc = r.number(4, "old_crc", hex)
        self.old_len = r.number(8, "old_len")
        r.take(32, "old_blake3", brief)
        r.number(8, "untouched_len")
        r.take(32, "untouched", brief)
        names = ["batches", "extents", "save_ranges", "save_reads", "barriers", "scratch_blocks", "final_blocks"]
        self.counts = {name: r.number(8, name) for name in names}
        r.number(4, "region_log")
        for i in range(r.number(4, "region_count")):
            r.number(4, f"region {i}", hex)

    def read_batches(self, r):
        self.batches, ends = [], {"extent": 0, "range": 0}

        def runs(what):
            found = []
            for i in range(r.varint(f"{what}s")):
                if i == 0:
                    start = ends[what] + r.varint(f"{what} start", signed=True, show=lambda v: f"{ends[what]}{v:+}")
                else:
                    start = ends[what] + r.varint(f"{what} gap")
                ends[what] = start + r.varint(f"{what} length")
                found.append((start, ends[what]))
            return found

        for number in range(1, self.counts["batches"] + 1):
            head = r.number(1, f"batch {number}: head",
                            lambda v: BATCHES[v & 3] + (", behind a barrier" if v & 4 else ""))
            kind, extents = head & 3, runs("extent")
            saved = runs("range") if kind == 1 else []
            crcs = (r.number(4, "crc", hex), r.number(4, "source_crc", hex)) if kind != 2 else None
            self.batches.append((kind, extents, saved, crcs))
        assert r.left() == 0


def dump(delta):
    lines = []
    for at, raw, note in delta.out:
        if not raw:
            lines.append(note)
        for i in range(0, len(raw), 16):
            lines.append(f"{at + i:04x}  {raw[i:i + 16].hex(' '):<47}  {note if i == 0 else ''}".rstrip())
    return "\n".join(lines)


# --------------------------------------------------------------------------------------------------------- applying

class Differences:
    """Chapter 6.4."""

    def __init__(self, gaps, values):
        self.gaps, self.values, self.gap = iter(gaps), iter(values), None

    def start_batch(self):
        self.lists = [[0] * 4 for _ in range(256)]

    def add(self, made, source, dst):
        """Turns the source bytes of a step into those that it makes."""
        at = 0
        while at < len(made):
            if self.gap is None:
                self.gap = next(self.gaps)
            skipped = min(self.gap, len(made) - at)
            at, self.gap = at + skipped, self.gap - skipped
            if at < len(made):
                width, self.gap = min(4, len(made) - at), None
                old = int.from_bytes(made[at:at + width], "little")
                new = old + self.value(source - dst, source + at + old)
                made[at:at + width] = (new % 2 ** (8 * width)).to_bytes(width, "little")
                at += width

    def value(self, displacement, target):
        guesses, number = self.lists[(target >> 14) % 256], next(self.values)
        if number < 4:
            shift = guesses.pop(number)
        else:
            assert number < 2 ** 32 + 4
            shift = (unzigzag(number - 4) - displacement) % 2 ** 32
            guesses.pop()
        guesses.insert(0, shift)
        return shift + displacement


def apply(delta, old):
    """The whole order on a target that holds the old image; one byte list, no restart, no rules checked."""
    target = bytearray(old) + bytes(max(0, delta.new_len - len(old)))
    kinds, lengths, sources = iter(delta.step_kinds), iter(delta.step_lengths), iter(delta.step_sources)
    literals, differences = iter(delta.raw.get(8, b"")), Differences(delta.gaps, delta.values)
    scratch = {}            # old block -> scratch block
    groups = []             # one dict of these for each live save
    last = {0: 0, 1: 0}     # displacement by space

    def old_byte(at):
        block = scratch.get(at // BLOCK, at // BLOCK)
        return target[block * BLOCK + at % BLOCK]

    for kind, extents, saved, crcs in delta.batches:
        made = bytearray()
        pairs = {}
        if kind == 2:
            made = bytes(sum(min(e * BLOCK, delta.new_len) - s * BLOCK for s, e in extents))
        elif kind == 1:
            blocks = sorted({b for s, e in saved for b in range(s // BLOCK, (e - 1) // BLOCK + 1)})
            slots = [b for s, e in extents for b in range(s, e)]
            assert len(blocks) == len(slots)
            pairs = dict(zip(blocks, slots))
            made = bytearray(len(slots) * BLOCK)
            for s, e in saved:
                for at in range(s, e):
                    made[blocks.index(at // BLOCK) * BLOCK + at % BLOCK] = target[at]
        else:
            differences.start_batch()
            for start, end in extents:
                dst, stop = start * BLOCK, min(end * BLOCK, delta.new_len)
                while dst < stop:
                    step, length = next(kinds), next(lengths)
                    length = length or stop - dst
                    if step in (1, 2, 4, 5):
                        space = step // 4
                        last[space] += next(sources)
                        src = dst + last[space]
                    if step == 0:
                        part = bytearray(next(literals) for _ in range(length))
                    elif step == 3:
                        part = bytearray(length)
                    else:
                        part = bytearray(old_byte(src + i) if space == 0 else target[src + i] for i in range(length))
                    if step in (2, 5):
                        differences.add(part, src, dst)
                    made += part
                    dst += length
        assert crcs is None or zlib.crc32(made) == crcs[0], "the batch does not come out right"
        written = {b for s, e in extents for b in range(s, e)}
        for group in [g for g in groups if written & set(g.values())]:
            groups.remove(group)
            for block in group:
                del scratch[block]
        if pairs:
            groups.append(pairs)
            scratch.update(pairs)
        at = 0
        for start, end in extents:
            size = min(end * BLOCK, delta.new_len) - start * BLOCK
            target[start * BLOCK:start * BLOCK + size] = made[at:at + size]
            at += size
    return bytes(target[:delta.new_len])


# --------------------------------------------------------------------------------------------------------- commands

def write_images(folder):
    old, new = images()
    (folder / "old.img").write_bytes(old)
    (folder / "new.img").write_bytes(new)


def put_dump(data):
    path = pathlib.Path(__file__).with_name("format.md")
    text = path.read_text()
    head, rest = text.split("<!-- example-dump:begin -->\n")
    _, tail = rest.split("<!-- example-dump:end -->\n")
    body = f"```text\n{dump(Delta(data))}\n```\n"
    path.write_text(f"{head}<!-- example-dump:begin -->\n{body}<!-- example-dump:end -->\n{tail}")


def main():
    verb, args = sys.argv[1], [pathlib.Path(a) for a in sys.argv[2:]]
    if verb == "images":
        write_images(args[0])
    elif verb == "dump":
        print(dump(Delta(args[0].read_bytes())))
    elif verb == "insert":
        put_dump(args[0].read_bytes())
    elif verb == "check":
        delta = Delta(args[0].read_bytes())
        made = apply(delta, (args[1] / "old.img").read_bytes())
        assert made == (args[1] / "new.img").read_bytes() and zlib.crc32(made) == delta.new_crc
        print("the delta makes the new image")
    elif verb == "update":
        testdata = pathlib.Path(__file__).resolve().parent.parent / "testdata"
        with tempfile.TemporaryDirectory() as folder:
            folder = pathlib.Path(folder)
            write_images(folder)
            delta = folder / "delta"
            subprocess.run([args[0], "--quiet", "diff", folder / "old.img", folder / "new.img", "-o", delta], check=True)
            made = apply(Delta(delta.read_bytes()), (folder / "old.img").read_bytes())
            assert made == (folder / "new.img").read_bytes()
            for name in ("old.img", "new.img", "delta"):
                (testdata / f"good-example.{name.removesuffix('.img')}").write_bytes((folder / name).read_bytes())
            put_dump(delta.read_bytes())
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main()
