use super::*;
use std::io::{Cursor, Read, Write};

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packed.write_all(bytes).unwrap();
    packed.finish().unwrap()
}

pub(crate) fn xz(bytes: &[u8]) -> Vec<u8> {
    let mut packed = Vec::new();
    liblzma::bufread::XzEncoder::new(bytes, 0).read_to_end(&mut packed).unwrap();
    packed
}

pub(crate) fn zst(bytes: &[u8]) -> Vec<u8> {
    zstd::stream::encode_all(bytes, 1).unwrap()
}

pub(crate) fn bz2(bytes: &[u8]) -> Vec<u8> {
    let mut packed = Vec::new();
    bzip2::bufread::BzEncoder::new(bytes, bzip2::Compression::fast()).read_to_end(&mut packed).unwrap();
    packed
}

pub(crate) type Pack = fn(&[u8]) -> Vec<u8>;
pub(crate) const PACKS: [(Packing, Pack); 4] =
    [(Packing::Gzip, gzip), (Packing::Xz, xz), (Packing::Zstd, zst), (Packing::Bzip2, bz2)];

/// What a file unpacks to, where all reads are short.
fn unpacked(packing: Packing, packed: &[u8]) -> Result<Vec<u8>, PackedError> {
    let (first, rest) = packed.split_at(packed.len().min(5));
    let mut unpacker = Unpacker::new(Cursor::new(first).chain(rest), packing);
    let mut all = Vec::new();
    let mut buffer = [0; 4099];
    loop {
        match unpacker.read(&mut buffer) {
            Ok(0) => {
                assert_eq!(unpacker.taken(), packed.len() as u64, "all of the file is used");
                return Ok(all);
            }
            Ok(n) => all.extend_from_slice(&buffer[..n]),
            Err(e) => return Err(unpacker.fault(e)),
        }
    }
}

fn image() -> Vec<u8> {
    (0..400_000u32).map(|i| if i % 5000 < 1000 { (i.wrapping_mul(2_654_435_761) >> 24) as u8 } else { 0 }).collect()
}

#[test]
fn formats_are_known_by_their_first_bytes() {
    for (packing, pack) in PACKS {
        for bytes in [&b""[..], b"x", &image()] {
            let packed = pack(bytes);
            assert_eq!(recognise(&packed[..packed.len().min(HEAD)]), Ok(Some(packing)));
        }
    }
    assert_eq!(recognise(b"\x50\x2a\x4d\x18\x04"), Ok(Some(Packing::Zstd)));
    for plain in [b"".as_slice(), b"\x1f\x8b", b"\xfd7zX", &[0; 16], b"\xeb\x63\x90", b"BZh", b"BZhello", b"BZh91AZ"] {
        assert_eq!(recognise(plain), Ok(None), "{plain:?}");
    }
    assert!(recognise(b"PK\x03\x04").is_err_and(|why| why.contains("unzip")));
    assert!(recognise(b"QFI\xfb\0\0\0\x03").is_err());
}

#[test]
fn all_parts_are_unpacked_to_the_end_of_the_last_one() {
    let image = image();
    for (packing, pack) in PACKS {
        assert_eq!(unpacked(packing, &pack(b"")).unwrap(), b"");
        assert!(unpacked(packing, &pack(&image)).unwrap() == image);
        let mut many = Vec::new();
        image.chunks(image.len() / 7).for_each(|part| many.extend([pack(part), pack(b"")].concat()));
        assert!(unpacked(packing, &many).unwrap() == image, "{packing}");
    }
}

#[test]
fn frames_to_be_skipped_and_padding_are_no_garbage() {
    let skipped = |len: usize| [&b"\x5e\x2a\x4d\x18"[..], &(len as u32).to_le_bytes(), &vec![9; len]].concat();
    let file = [skipped(4), zst(b"one"), skipped(300_000), skipped(0), zst(b"two"), skipped(1)].concat();
    assert_eq!(unpacked(Packing::Zstd, &file).unwrap(), b"onetwo");
    let file = [xz(b"one"), vec![0; 400], xz(b"two"), vec![0; 8]].concat();
    assert_eq!(unpacked(Packing::Xz, &file).unwrap(), b"onetwo");
    let file = [xz(b"one"), vec![0; 7]].concat();
    let at = xz(b"one").len() as u64 + 4;
    assert!(matches!(unpacked(Packing::Xz, &file), Err(PackedError::Garbage { at: found, .. }) if found == at));
}

#[test]
fn what_follows_or_is_missing_is_told_with_its_place() {
    let image = image();
    for (packing, pack) in PACKS {
        let packed = pack(&image);
        let len = packed.len() as u64;
        for garbage in [&b"\0"[..], b"garbage", &[0; 1000], &packed[..3], &[0x1f, 0x8b]] {
            if packing == Packing::Xz && garbage.len() == 1000 {
                continue; // padding
            }
            let found = unpacked(packing, &[&packed[..], garbage].concat());
            // Or it looks like the beginning of another part.
            let cut = packing.begins(garbage) && matches!(found, Err(PackedError::CutShort { at }) if at > len);
            let told = matches!(found, Err(PackedError::Garbage { at, .. }) if at == len);
            assert!(told || cut, "{packing}: {found:?}");
        }
        for cut in [packed.len() - 1, packed.len() - 5, packed.len() - 9, packed.len() / 2, 30, 18] {
            let found = unpacked(packing, &packed[..cut]);
            assert!(
                matches!(found, Err(PackedError::CutShort { at }) if at <= cut as u64),
                "{packing}, {cut}: {found:?}"
            );
            // Of the second part, too.
            let found = unpacked(packing, &[&packed[..], &packed[..cut]].concat());
            assert!(matches!(found, Err(PackedError::CutShort { at }) if at > len), "{packing}, {cut}: {found:?}");
        }
    }
}

#[test]
fn no_damage_goes_unnoticed_where_there_is_a_checksum() {
    let image = image();
    for (packing, pack) in PACKS {
        let packed = pack(&image);
        for at in (10..packed.len()).step_by(packed.len() / 97) {
            let mut damaged = packed.clone();
            damaged[at] ^= 0x55;
            match unpacked(packing, &damaged) {
                Err(
                    PackedError::Damaged { at, .. } | PackedError::CutShort { at } | PackedError::Garbage { at, .. },
                ) => {
                    assert!(at <= packed.len() as u64);
                }
                Err(e) => assert!(matches!(e, PackedError::Memory { .. }), "{packing}, byte {at}: {e}"),
                // Some bits mean nothing. And zstd's frames need not have a checksum.
                Ok(found) => assert!(packing == Packing::Zstd || found == image, "{packing}, byte {at}"),
            }
        }
    }
}

#[test]
fn memory_is_bounded() {
    let mut head = b"\x28\xb5\x2f\xfd\x00\xa9".to_vec(); // a window a little larger than 2 GiB
    head.resize(100, 0);
    let found = unpacked(Packing::Zstd, &head);
    assert!(matches!(found, Err(PackedError::Memory { needed: Some(bytes), .. }) if bytes == (2 << 30) + (2 << 27)));
    assert!(((256 << 20)..=(2 << 30)).contains(&memory_limit()));
}

#[test]
fn a_file_that_cannot_be_read_to_its_end_says_so() {
    struct Broken;
    impl Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
            Err(std::io::Error::from_raw_os_error(5))
        }
    }
    let packed = gzip(&image());
    let mut unpacker = Unpacker::new(Cursor::new(&packed[..20_000]).chain(Broken), Packing::Gzip);
    let failed = unpacker.read_to_end(&mut Vec::new()).unwrap_err();
    let source = unpacker.fault(failed);
    assert!(matches!(source, PackedError::Io { at, .. } if at > 0));
    let error = crate::error::Error::Packed { path: "image.gz".into(), packing: Packing::Gzip, at: 9, source };
    crate::message_rows::assert_row(&error.to_string(), "packed-io");
}

#[test]
fn a_window_between_the_limit_and_its_power_of_two_takes_too_much_memory() {
    // 1.5 MiB, 1 MiB + 128 KiB, and 1 MiB, which is the first that is allowed.
    for (window, expected) in [(10 << 3 | 4, Some(3 << 19)), (10 << 3 | 1, Some(9 << 17)), (10 << 3, None)] {
        let frame = [&b"\x28\xb5\x2f\xfd\x00"[..], &[window], &[0x19, 0, 0], b"one"].concat();
        let mut all = Vec::new();
        let mut unpacker = Unpacker::with_limit(&frame[..], Packing::Zstd, (2 << 20) - 1);
        match (unpacker.read_to_end(&mut all).map_err(|e| unpacker.fault(e)), expected) {
            (Err(PackedError::Memory { needed, limit }), Some(_)) => assert_eq!((needed, limit), (expected, 1 << 20)),
            (Ok(_), None) => assert_eq!(all, b"one"),
            (other, _) => panic!("{window}: {other:?}"),
        }
    }
}
