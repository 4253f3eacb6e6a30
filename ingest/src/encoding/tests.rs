use std::io::Write as _;

use flate2::Compression;
use flate2::write::{DeflateEncoder, GzEncoder, ZlibEncoder};
use hyper::header::HeaderValue;

use super::*;
use crate::body::Memory;

const MIB: usize = 1024 * 1024;

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(bytes).expect("a Vec takes every byte");
    encoder.finish().expect("a Vec takes every byte")
}

fn zlib(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes).expect("a Vec takes every byte");
    encoder.finish().expect("a Vec takes every byte")
}

fn raw(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = DeflateEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes).expect("a Vec takes every byte");
    encoder.finish().expect("a Vec takes every byte")
}

fn brotli(bytes: &[u8], window_bits: u32) -> Vec<u8> {
    let mut out = Vec::new();
    let mut encoder = brotli::CompressorWriter::new(&mut out, 4096, 5, window_bits);
    encoder.write_all(bytes).expect("a Vec takes every byte");
    drop(encoder);
    out
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Fastest)
}

/// A frame of zstd with a header of its own and blocks of one repeated byte: so many bytes of output.
fn frame(header: &[u8], bytes: usize) -> Vec<u8> {
    let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd];
    frame.extend_from_slice(header);
    let mut left = bytes;
    loop {
        let length = left.min(128 * 1024);
        left -= length;
        let block = (length << 3) as u32 | 2 | u32::from(left == 0);
        frame.extend_from_slice(&block.to_le_bytes()[..3]);
        frame.push(b' ');
        if left == 0 {
            return frame;
        }
    }
}

/// What a body holds, with a limit of 10,000 bytes or another one.
fn decoded(encoding: Encoding, bytes: &[u8], bytes_max: usize, memory: &Memory) -> Result<Vec<u8>, String> {
    let mut out = Vec::new();
    let mut reserved = memory.reserve();
    let done = encoding.decode(bytes, bytes_max, &mut reserved, &mut out);
    drop(reserved);
    assert_eq!(memory.used(), 0, "{encoding:?}");
    done.map(|()| out).map_err(|fault| format!("{fault:?}"))
}

/// All encoders, with the encoding that is found in what each makes and the label that a client gives it.
type Encoder = (Encoding, &'static str, fn(&[u8]) -> Vec<u8>);
const ENCODERS: [Encoder; 5] = [
    (Encoding::Gzip, "gzip", gzip),
    (Encoding::Zlib, "deflate", zlib),
    (Encoding::Deflate, "deflate", raw),
    (Encoding::Brotli, "br", |bytes| brotli(bytes, 22)),
    (Encoding::Zstd, "zstd", zstd),
];

fn labelled(names: &[&'static str]) -> Result<Option<Label>, Unsupported> {
    label(&names.iter().map(|name| (CONTENT_ENCODING, HeaderValue::from_static(name))).collect())
}

#[test]
fn one_encoding_is_accepted() {
    for (names, expected) in [
        (&[][..], Ok(None)),
        (&["identity"], Ok(None)),
        (&["GZIP"], Ok(Some(Encoding::Gzip))),
        (&["x-gzip"], Ok(Some(Encoding::Gzip))),
        (&["deflate"], Ok(Some(Encoding::Deflate))),
        (&["Br"], Ok(Some(Encoding::Brotli))),
        (&["", "zstd"], Ok(Some(Encoding::Zstd))),
        (&["gzip, gzip"], Err(Unsupported)),
        (&["gzip, br"], Err(Unsupported)),
        (&["gzip", "gzip"], Err(Unsupported)),
        (&["gzip", "br"], Err(Unsupported)),
        (&["snappy"], Err(Unsupported)),
    ] {
        assert_eq!(labelled(names).map(|label| label.map(|Label(encoding)| encoding)), expected, "{names:?}");
    }
}

#[test]
fn what_was_encoded_is_found_and_decoded_as_it_was() {
    let memory = Memory::new(64 * MIB);
    let json: String = (0..300).map(|n| format!("{{\"user\":\"é{n}\",\"n\":{}}}", n * 7919 % 1000)).collect();
    for (encoding, name, encode) in ENCODERS {
        for text in [json.as_bytes(), b"{\"type\":\"impression\",\"user_id\":\"u\"}", &json.as_bytes()[..5_000]] {
            let bytes = encode(text);
            let given = labelled(&[name]).expect("accepted");
            assert_eq!(of(&bytes, given), Some(encoding), "{name}");
            // Without a label, or under a wrong one, the first bytes tell, where there are any that do.
            let has_mark = matches!(encoding, Encoding::Gzip | Encoding::Zlib | Encoding::Zstd);
            assert_eq!(of(&bytes, None), has_mark.then_some(encoding), "{name}");
            if has_mark {
                assert_eq!(of(&bytes, labelled(&["deflate"]).expect("accepted")), Some(encoding), "{name}");
            }
            assert_eq!(decoded(encoding, &bytes, 1 << 20, &memory).as_deref(), Ok(text), "{name}");
        }
    }
    // What a proxy has decompressed is what it is, whatever its label says.
    for name in ["gzip", "deflate", "br", "zstd"] {
        let given = labelled(&[name]).expect("accepted");
        for text in [&b"{\"a\":1}"[..], b" [1]", b"", b"data=eyJ9", "{\"\u{e9}\":1}".as_bytes(), json.as_bytes()] {
            assert_eq!(of(text, given), None, "{name} {text:?}");
        }
    }
    assert_eq!(of(b"{\"a\":\"\xff\"}", labelled(&["gzip"]).expect("accepted")), None);
    // Two frames, and one to be skipped between them.
    let frames = [zstd(b"{"), vec![0x50, 0x2a, 0x4d, 0x18, 2, 0, 0, 0, 9, 9], zstd(b"}")].concat();
    assert_eq!(decoded(Encoding::Zstd, &frames, 100, &memory).as_deref(), Ok(&b"{}"[..]));
    assert_eq!(decoded(Encoding::Gzip, &[gzip(b"{"), gzip(b"}")].concat(), 100, &memory).as_deref(), Ok(&b"{}"[..]));
}

#[test]
fn bombs_cost_no_more_than_the_limit() {
    for (encoding, name, encode) in ENCODERS {
        let memory = Memory::new(32 * MIB);
        assert_eq!(decoded(encoding, &encode(&[b' '; 10_000]), 10_000, &memory).map(|out| out.len()), Ok(10_000), "{name}");
        for bytes in [10_001, 2_000_000] {
            let bomb = encode(&vec![b' '; bytes]);
            assert_eq!(decoded(encoding, &bomb, 10_000, &memory), Err("DecodedTooLarge".to_owned()), "{name} {bytes}");
        }
        // Nor more than the memory that there is.
        let bomb = encode(&vec![b' '; 4 * MIB]);
        assert_eq!(decoded(encoding, &bomb, 10 * MIB, &Memory::new(MIB)), Err("NoMemory".to_owned()), "{name}");
    }
    // As much as is asked for is there, of what is too large too.
    let mut out = Vec::new();
    let memory = Memory::new(MIB);
    let _ = Encoding::Gzip.decode(&gzip(b"abcdef"), 4, &mut memory.reserve(), &mut out);
    assert_eq!(out, b"abcd");
}

#[test]
fn what_ends_early_is_refused_by_name() {
    let memory = Memory::new(64 * MIB);
    let text: Vec<u8> = (0..2_000_u32).flat_map(|n| (n.wrapping_mul(2_654_435_761) >> 7).to_le_bytes()).collect();
    for (encoding, name, encode) in ENCODERS {
        let bytes = encode(&text);
        for length in [bytes.len() - 1, bytes.len() / 2, 9] {
            let found = decoded(encoding, &bytes[..length], 100_000, &memory);
            let error = found.expect_err("refused");
            assert!(error.starts_with(&format!("BadEncoding({encoding:?}")), "{name} {length}: {error}");
        }
        assert_eq!(encoding.as_str(), name);
    }
    let check = |encoding, bytes: &[u8]| assert!(decoded(encoding, bytes, 100, &memory).is_err(), "{encoding:?} {bytes:?}");
    check(Encoding::Zlib, &[zlib(b"{}"), b"x".to_vec()].concat());
    check(Encoding::Zstd, &[zstd(b"{}"), b"x".to_vec()].concat());
    check(Encoding::Zstd, &[0x50, 0x2a, 0x4d, 0x18, 2, 0, 0, 0, 9]);
    check(Encoding::Brotli, &[0xff; 40]);
    check(Encoding::Gzip, &[0x1f, 0x8b, 0x09, 0x00]);
}

#[test]
fn windows_are_bounded() {
    let memory = Memory::new(64 * MIB);
    let check = |header: &[u8], bytes: usize, expected: Result<usize, &str>| {
        let found = decoded(Encoding::Zstd, &frame(header, bytes), 16 * MIB, &memory).map(|out| out.len());
        match (found, expected) {
            (Ok(found), Ok(expected)) => assert_eq!(found, expected),
            (Err(found), Err(expected)) => assert!(found.contains(expected), "{found}"),
            (found, expected) => panic!("{found:?}, expected {expected:?}"),
        }
    };
    // 2^23, and the next one that a header can say.
    check(&[0x00, 13 << 3], 300_000, Ok(300_000));
    check(&[0x00, 13 << 3 | 1], 1, Err("its window has 9437184 bytes; at most 8388608 are accepted"));
    check(&[0x00, 31 << 3 | 7], 1, Err("at most 8388608 are accepted"));
    // One segment is its own window: 2^23 bytes, and one more.
    let single = |size: u32| [vec![0xa0], size.to_le_bytes().to_vec()].concat();
    check(&single(8 << 20), 8 * MIB, Ok(8 * MIB));
    check(&single((8 << 20) + 1), 8 * MIB + 1, Err("its window has 8388609 bytes; at most 8388608 are accepted"));
    for first in 0x22..=0x27 {
        let legacy = [&[first, 0xb5, 0x2f, 0xfd][..], &[0; 20]].concat();
        assert_eq!(sniffed(&legacy), Some(Encoding::Zstd));
        let error = decoded(Encoding::Zstd, &legacy, 100, &memory).expect_err("refused");
        assert!(error.contains("before 0.8"), "{error}");
    }
    // A window is memory, though little comes out of it: it is counted while it is held.
    let few = Memory::new(4 * MIB);
    assert_eq!(decoded(Encoding::Zstd, &frame(&[0x00, 13 << 3], 10), 100, &few), Err("NoMemory".to_owned()));
    // Brotli's largest is accepted, and those of another format are not.
    assert_eq!(decoded(Encoding::Brotli, &brotli(b"{}", 24), 100, &memory).as_deref(), Ok(&b"{}"[..]));
    let error = decoded(Encoding::Brotli, &[0x11, 0x3a, 0, 0], 100, &memory).expect_err("refused");
    assert!(error.contains("larger than 16 MiB"), "{error}");
}
