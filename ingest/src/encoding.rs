//! Encodings of bodies: which one a body has, and how what it holds is taken out, within bounds of output and memory.

use std::cell::RefCell;
use std::io::{self, Read};
use std::rc::Rc;

use brotli_decompressor::reader::DecompressorCustomAlloc;
use brotli_decompressor::{Allocator, SliceWrapper as _, StandardAlloc};
use flate2::read::MultiGzDecoder;
use flate2::{Decompress, FlushDecompress, Status};
use hyper::HeaderMap;
use hyper::header::CONTENT_ENCODING;
use ruzstd::decoding::StreamingDecoder;

use crate::body::{BodyFault, Reserved};

/// Bytes of a window that zstd may look back on, as of any client of HTTP (RFC 9659).
const ZSTD_WINDOW_MAX: u64 = 8 * 1024 * 1024;
/// Bytes that a decoder of zstd takes besides: a block, and tables.
const ZSTD_BESIDE: usize = 512 * 1024;
/// Bytes of the beginning by which a text is told from what is compressed.
const TEXT_LOOK: usize = 64;

/// How a body was compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Encoding {
    Gzip,
    /// What HTTP calls deflate: a zlib stream.
    Zlib,
    /// A deflate stream alone, which some clients send under that name.
    Deflate,
    Brotli,
    Zstd,
}

/// What a request calls the encoding of its body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Label(Encoding);

/// A request names an encoding that is not accepted, or several.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Unsupported;

/// Reads the label of a body; none if it says that there is no encoding.
/// # Errors
/// [`Unsupported`]; one in another is no client's, but by intent.
pub(crate) fn label(headers: &HeaderMap) -> Result<Option<Label>, Unsupported> {
    let mut found = None;
    for label in headers.get_all(CONTENT_ENCODING) {
        let encoding = match label.as_bytes() {
            b"" => continue,
            label if label.eq_ignore_ascii_case(b"identity") => continue,
            label if label.eq_ignore_ascii_case(b"gzip") || label.eq_ignore_ascii_case(b"x-gzip") => Encoding::Gzip,
            label if label.eq_ignore_ascii_case(b"deflate") => Encoding::Deflate,
            label if label.eq_ignore_ascii_case(b"br") => Encoding::Brotli,
            label if label.eq_ignore_ascii_case(b"zstd") => Encoding::Zstd,
            _ => return Err(Unsupported),
        };
        if found.replace(Label(encoding)).is_some() {
            return Err(Unsupported);
        }
    }
    Ok(found)
}

/// Returns the encoding of a body: by its first bytes, else by its label, unless it is a text all the same, which a proxy has
/// decompressed without a word.
pub(crate) fn of(bytes: &[u8], label: Option<Label>) -> Option<Encoding> {
    match (sniffed(bytes), label) {
        // Brotli has no mark of its own, and may begin as zlib does.
        (Some(Encoding::Zlib) | None, Some(Label(Encoding::Brotli))) => {
            Some(Encoding::Brotli).filter(|_| !looks_like_text(bytes))
        }
        (Some(encoding), _) => Some(encoding),
        // What has a mark, and does not show it, is JSON if it begins as such, whatever characters are in it.
        (None, Some(Label(Encoding::Gzip | Encoding::Zstd))) if bytes.trim_ascii_start().starts_with(b"{") => None,
        (None, Some(Label(Encoding::Gzip | Encoding::Zstd))) if bytes.trim_ascii_start().starts_with(b"[") => None,
        (None, Some(Label(encoding))) => Some(encoding).filter(|_| !looks_like_text(bytes)),
        (None, None) => None,
    }
}

/// Returns the encoding that the first bytes show.
pub(crate) fn sniffed(bytes: &[u8]) -> Option<Encoding> {
    match bytes {
        [0x1f, 0x8b, ..] => Some(Encoding::Gzip),
        // A window of 32 KiB, and one of four levels: nobody sends another one, and some would be text.
        [0x78, 0x01 | 0x5e | 0x9c | 0xda, ..] => Some(Encoding::Zlib),
        // Frames of today, those of the formats before it, to be refused by name, and frames to be skipped.
        [0x22..=0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Some(Encoding::Zstd),
        _ => None,
    }
}

fn looks_like_text(bytes: &[u8]) -> bool {
    let look = &bytes[..bytes.len().min(TEXT_LOOK)];
    // A character may be cut by the end of the look.
    let valid = look.utf8_chunks().next().map_or("", |chunk| chunk.valid());
    let is_whole = valid.len() + 4 > look.len() && (valid.len() == look.len() || look.len() == TEXT_LOOK);
    is_whole && !valid.chars().any(|letter| letter.is_control() && !letter.is_ascii_whitespace())
}

impl Encoding {
    /// Returns the name, as labels have it.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Encoding::Gzip => "gzip",
            Encoding::Zlib | Encoding::Deflate => "deflate",
            Encoding::Brotli => "br",
            Encoding::Zstd => "zstd",
        }
    }

    fn bad(self, reason: impl ToString) -> BodyFault {
        BodyFault::BadEncoding(self, reason.to_string())
    }

    /// Appends to `out` what `bytes` hold. Output is counted while it is made, so that a bomb costs no more than the limit, and memory
    /// reserved for it beside what is held; what decoders take for themselves is given back at the end.
    /// # Errors
    /// `BadEncoding`; `DecodedTooLarge` beyond `bytes_max`, when `out` has that many; `NoMemory`.
    pub(crate) fn decode(
        self,
        bytes: &[u8],
        bytes_max: usize,
        reserved: &mut Reserved,
        out: &mut Vec<u8>,
    ) -> Result<(), BodyFault> {
        let mut sink = Sink { encoding: self, bytes_max, before: bytes.len(), reserved, out };
        match self {
            Encoding::Gzip => sink.pump(MultiGzDecoder::new(bytes)),
            Encoding::Zlib => sink.deflate(bytes, true),
            Encoding::Deflate => sink.deflate(bytes, false),
            Encoding::Brotli => sink.brotli(bytes),
            Encoding::Zstd => sink.zstd(bytes),
        }
    }
}

/// Takes output as it is made.
struct Sink<'a> {
    encoding: Encoding,
    bytes_max: usize,
    /// Bytes of the body as it was sent, which are held meanwhile.
    before: usize,
    reserved: &'a mut Reserved,
    out: &'a mut Vec<u8>,
}

impl Sink<'_> {
    fn take(&mut self, bytes: &[u8]) -> Result<(), BodyFault> {
        let fitting = bytes.len().min(self.bytes_max - self.out.len());
        self.reserved.grow_to(self.before + self.out.len() + fitting)?;
        self.out.extend_from_slice(&bytes[..fitting]);
        if fitting < bytes.len() { Err(BodyFault::DecodedTooLarge) } else { Ok(()) }
    }

    fn pump(&mut self, mut decoder: impl Read) -> Result<(), BodyFault> {
        let mut chunk = [0; 16 * 1024];
        loop {
            match decoder.read(&mut chunk) {
                Ok(0) => return Ok(()),
                Ok(read) => self.take(&chunk[..read])?,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.encoding.bad(error)),
            }
        }
    }

    /// A reader of the library's would take a stream that ends early for a whole one.
    fn deflate(&mut self, mut bytes: &[u8], has_zlib_header: bool) -> Result<(), BodyFault> {
        let mut inflater = Decompress::new(has_zlib_header);
        let mut chunk = [0; 16 * 1024];
        loop {
            let (read, written) = (inflater.total_in(), inflater.total_out());
            let status = inflater.decompress(bytes, &mut chunk, FlushDecompress::None);
            let status = status.map_err(|error| self.encoding.bad(error))?;
            let (read, written) = (inflater.total_in() - read, inflater.total_out() - written);
            bytes = &bytes[read as usize..];
            self.take(&chunk[..written as usize])?;
            match status {
                Status::StreamEnd if bytes.is_empty() => return Ok(()),
                Status::StreamEnd => return Err(self.encoding.bad("there are bytes after its end")),
                Status::Ok | Status::BufError if read == 0 && written == 0 => {
                    return Err(self.encoding.bad("it ends too early"));
                }
                Status::Ok | Status::BufError => {}
            }
        }
    }

    fn brotli(&mut self, bytes: &[u8]) -> Result<(), BodyFault> {
        // The mark of windows beyond 16 MiB, which are no part of the encoding (RFC 7932, 9.1).
        if bytes.first().is_some_and(|first| first & 0x7f == 0x11) {
            return Err(self.encoding.bad("its window is larger than 16 MiB"));
        }
        let memory = Rc::new(RefCell::new(Ring { reserved: self.reserved.beside(), held: 0, is_refused: false }));
        let mut standard = StandardAlloc::default();
        let input: <StandardAlloc as Allocator<u8>>::AllocatedMemory = standard.alloc_cell(4096);
        let allocator = Counting(Rc::clone(&memory));
        let decoder = DecompressorCustomAlloc::new(bytes, input, allocator, StandardAlloc::default(), StandardAlloc::default());
        let done = self.pump(decoder);
        if memory.borrow().is_refused { Err(BodyFault::NoMemory) } else { done }
    }

    fn zstd(&mut self, mut bytes: &[u8]) -> Result<(), BodyFault> {
        let bad = |reason: &str| Encoding::Zstd.bad(reason);
        let mut beside = self.reserved.beside();
        while !bytes.is_empty() {
            match bytes {
                [0x28, 0xb5, 0x2f, 0xfd, ..] => {}
                [0x50..=0x5f, 0x2a, 0x4d, 0x18, a, b, c, d, rest @ ..] => {
                    let length = u32::from_le_bytes([*a, *b, *c, *d]) as usize;
                    bytes = rest.get(length..).ok_or_else(|| bad("it ends too early"))?;
                    continue;
                }
                [0x22..=0x27, 0xb5, 0x2f, 0xfd, ..] => return Err(bad("it is of a format before 0.8, which is not accepted")),
                _ => return Err(bad("what follows is no frame")),
            }
            let window = window(bytes).ok_or_else(|| bad("it ends too early"))?;
            if window > ZSTD_WINDOW_MAX {
                return Err(bad(&format!("its window has {window} bytes; at most {ZSTD_WINDOW_MAX} are accepted")));
            }
            beside.grow_to(window as usize + ZSTD_BESIDE)?;
            let decoder = StreamingDecoder::new_with_max_window_size(&mut bytes, ZSTD_WINDOW_MAX);
            self.pump(decoder.map_err(|error| Encoding::Zstd.bad(error))?)?;
        }
        Ok(())
    }
}

/// Returns the bytes of a frame's window, by its header (RFC 8878, 3.1.1.1); none if the header is not whole.
fn window(frame: &[u8]) -> Option<u64> {
    let descriptor = *frame.get(4)?;
    let is_single_segment = descriptor & 0x20 != 0;
    if !is_single_segment {
        let window = *frame.get(5)?;
        let base = 1_u64 << (10 + (window >> 3));
        return Some(base + base / 8 * u64::from(window & 7));
    }
    // Then the window is the content, whose size follows the id of a dictionary.
    let at = 5 + [0, 1, 2, 4][usize::from(descriptor & 3)];
    let length = [1, 2, 4, 8][usize::from(descriptor >> 6)];
    let mut size = [0; 8];
    size[..length].copy_from_slice(frame.get(at..at + length)?);
    let size = u64::from_le_bytes(size);
    Some(if length == 2 { size + 256 } else { size })
}

/// Memory of brotli's window, which grows with what it is told to hold, up to 16 MiB.
struct Ring {
    reserved: Reserved,
    held: usize,
    is_refused: bool,
}

/// Gives a decoder the memory that there is.
struct Counting(Rc<RefCell<Ring>>);

impl Allocator<u8> for Counting {
    type AllocatedMemory = <StandardAlloc as Allocator<u8>>::AllocatedMemory;

    fn alloc_cell(&mut self, length: usize) -> Self::AllocatedMemory {
        let mut ring = self.0.borrow_mut();
        let held = ring.held + length;
        if ring.reserved.grow_to(held).is_err() {
            // The decoder fails for want of a window, and that is told.
            ring.is_refused = true;
            return Self::AllocatedMemory::default();
        }
        ring.held = held;
        StandardAlloc::default().alloc_cell(length)
    }

    fn free_cell(&mut self, memory: Self::AllocatedMemory) {
        self.0.borrow_mut().held -= memory.slice().len();
        StandardAlloc::default().free_cell(memory);
    }
}

#[cfg(test)]
mod tests;
