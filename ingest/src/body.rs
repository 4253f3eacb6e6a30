//! Bodies: received within a deadline, inflated up to a limit, and bounded in memory all together.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt as _;
use hyper::body::Body as HttpBody;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout, timeout_at};

use crate::config::Limits;
use crate::encoding::{self, Encoding, Label};

/// Memory is reserved in steps of this many bytes.
const STEP: usize = 1024;
/// A body that is refused unread is still read, up to here, so that its client gets the answer instead of a broken connection.
const DISCARD_BYTES_MAX: usize = 4 * 1024 * 1024;
const DISCARD_WAIT_MAX: Duration = Duration::from_secs(2);

/// Why a body was not taken.
#[derive(Debug)]
pub(crate) enum BodyFault {
    /// More bytes than accepted, as they are sent.
    TooLarge,
    /// More bytes than accepted, once inflated.
    DecodedTooLarge,
    /// Too slow, or never finished.
    TooSlow,
    /// The connection broke, or its framing did.
    Broken,
    /// Labelled or marked as encoded so, but not valid.
    BadEncoding(Encoding, String),
    /// All memory for bodies is in use.
    NoMemory,
}

/// The memory that all bodies share.
#[derive(Clone, Debug)]
pub(crate) struct Memory {
    steps: Arc<Semaphore>,
    steps_max: usize,
}

impl Memory {
    pub(crate) fn new(bytes_max: usize) -> Self {
        let steps_max = (bytes_max / STEP).min(Semaphore::MAX_PERMITS);
        Memory { steps: Arc::new(Semaphore::new(steps_max)), steps_max }
    }

    /// Returns the bytes that are reserved now.
    pub(crate) fn used(&self) -> usize {
        (self.steps_max - self.steps.available_permits()) * STEP
    }

    /// Begins a reservation, of nothing yet.
    pub(crate) fn reserve(&self) -> Reserved {
        Reserved { memory: self.clone(), permit: None }
    }
}

/// A part of the memory, given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Reserved {
    memory: Memory,
    permit: Option<OwnedSemaphorePermit>,
}

impl Reserved {
    /// Begins another reservation in the same memory.
    pub(crate) fn beside(&self) -> Reserved {
        self.memory.reserve()
    }

    /// Reserves more, up to a total. # Errors `NoMemory`, with what is reserved unchanged.
    pub(crate) fn grow_to(&mut self, bytes: usize) -> Result<(), BodyFault> {
        let held = self.permit.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        let missing = bytes.div_ceil(STEP).saturating_sub(held);
        if missing == 0 {
            return Ok(());
        }
        let missing = u32::try_from(missing).map_err(|_| BodyFault::NoMemory)?;
        let more = self.memory.steps.clone().try_acquire_many_owned(missing).map_err(|_| BodyFault::NoMemory)?;
        match &mut self.permit {
            Some(permit) => permit.merge(more),
            None => self.permit = Some(more),
        }
        Ok(())
    }
}

/// A body in memory.
#[derive(Debug)]
pub(crate) struct Body {
    pub(crate) bytes: Bytes,
    reserved: Reserved,
}

/// Receives a body as it is sent.
pub(crate) async fn receive<B: HttpBody<Data = Bytes> + Unpin>(
    body: &mut B,
    limits: &Limits,
    memory: &Memory,
) -> Result<Body, BodyFault> {
    let mut reserved = memory.reserve();
    let declared = body.size_hint().exact();
    if declared.is_some_and(|declared| declared > limits.body_bytes_max as u64) {
        return Err(BodyFault::TooLarge);
    }
    let start = Instant::now();
    let end = start + limits.body_wait_max;
    let mut first = Bytes::new();
    let mut rest = BytesMut::new();
    let mut received = 0;
    loop {
        // A body that keeps to the smallest rate gets more time with each byte, until the end.
        let earned = Duration::from_secs_f64(received as f64 / limits.body_rate_min.max(1) as f64);
        let deadline = end.min(start + limits.body_rate_grace + earned);
        let frame = match timeout_at(deadline, body.frame()).await {
            Err(_) => return Err(BodyFault::TooSlow),
            Ok(None) => break,
            Ok(Some(Err(_))) => return Err(BodyFault::Broken),
            Ok(Some(Ok(frame))) => frame,
        };
        // Trailers are ignored.
        let Ok(data) = frame.into_data() else { continue };
        received += data.len();
        if received > limits.body_bytes_max {
            return Err(BodyFault::TooLarge);
        }
        reserved.grow_to(received)?;
        // Most bodies come in one piece, which needs no copy.
        if first.is_empty() && rest.is_empty() {
            first = data;
        } else {
            if rest.is_empty() {
                rest.extend_from_slice(&first);
            }
            rest.extend_from_slice(&data);
            // Others take a turn after each piece: of a body that is there already the runtime would otherwise let this task read up to 128.
            tokio::task::yield_now().await;
        }
    }
    let bytes = if rest.is_empty() { first } else { rest.freeze() };
    Ok(Body { bytes, reserved })
}

/// Reads and drops what a client still sends.
pub(crate) async fn discard<B: HttpBody<Data = Bytes> + Unpin>(body: &mut B) {
    let reading = async {
        let mut read = 0;
        while read < DISCARD_BYTES_MAX {
            let Some(Ok(frame)) = body.frame().await else { return };
            read += frame.data_ref().map_or(0, Bytes::len);
        }
    };
    // Too much or too slow: then the connection is closed all the same.
    let _ = timeout(DISCARD_WAIT_MAX, reading).await;
}

impl Body {
    /// Returns how the body is encoded, if it is; labels are wrong in both directions.
    pub(crate) fn encoding(&self, label: Option<Label>) -> Option<Encoding> {
        encoding::of(&self.bytes, label)
    }

    /// Returns the beginning of the body, decoded: so many bytes at most. A broken end is not its business.
    /// # Errors
    /// `NoMemory`.
    pub(crate) fn beginning(&self, bytes_max: usize, label: Option<Label>) -> Result<Bytes, BodyFault> {
        let Some(encoding) = self.encoding(label) else {
            return Ok(self.bytes.slice(..self.bytes.len().min(bytes_max)));
        };
        let mut out = Vec::new();
        match encoding.decode(&self.bytes, bytes_max, &mut self.reserved.beside(), &mut out) {
            Err(BodyFault::NoMemory) => Err(BodyFault::NoMemory),
            // What came out before a fault stays in it.
            _ => Ok(out.into()),
        }
    }

    /// Reserves the body's bytes in another memory, and gives back those of the former one.
    /// # Errors
    /// `NoMemory`.
    pub(crate) fn move_to(self, memory: &Memory) -> Result<Body, BodyFault> {
        let mut reserved = memory.reserve();
        reserved.grow_to(self.bytes.len())?;
        Ok(Body { bytes: self.bytes, reserved })
    }

    /// Decodes the body, once, into no more bytes than accepted.
    /// # Errors
    /// Those of [`Encoding::decode`].
    pub(crate) fn decode(self, encoding: Encoding, limits: &Limits) -> Result<Body, BodyFault> {
        let Body { bytes, mut reserved } = self;
        let mut out = Vec::new();
        encoding.decode(&bytes, limits.decoded_bytes_max, &mut reserved, &mut out)?;
        Ok(Body { bytes: out.into(), reserved })
    }

    /// Puts other bytes in the place of the body's, within the same memory.
    /// # Errors
    /// `NoMemory`.
    pub(crate) fn replaced(mut self, bytes: Vec<u8>) -> Result<Body, BodyFault> {
        self.reserved.grow_to(self.bytes.len() + bytes.len())?;
        Ok(Body { bytes: bytes.into(), reserved: self.reserved })
    }

    /// Separates the bytes from the reservation, which what is made of them needs too.
    pub(crate) fn into_parts(self) -> (Bytes, Reserved) {
        (self.bytes, self.reserved)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::Compression;
    use flate2::write::GzEncoder;
    use std::io::Write as _;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(bytes).expect("a Vec takes every byte");
        encoder.finish().expect("a Vec takes every byte")
    }

    fn body(bytes: Vec<u8>, memory: &Memory) -> Body {
        Body { bytes: bytes.into(), reserved: memory.reserve() }
    }

    /// The length of a body once inflated, with a limit of 10,000 bytes and 256 KiB of memory.
    fn check(bytes: Vec<u8>, expected: Result<usize, &str>) {
        let limits = Limits { decoded_bytes_max: 10_000, ..Limits::default() };
        let memory = Memory::new(256 * 1024);
        let found = body(bytes, &memory).decode(Encoding::Gzip, &limits);
        match (&found, expected) {
            (Ok(body), Ok(length)) => assert_eq!(body.bytes.len(), length),
            (Err(fault), Err(expected)) => assert!(format!("{fault:?}").starts_with(expected), "{fault:?}"),
            (found, expected) => panic!("{found:?}, expected {expected:?}"),
        }
        drop(found);
        assert_eq!(memory.used(), 0);
    }

    #[test]
    fn inflating_stops_at_the_limit() {
        check(gzip(b"{}"), Ok(2));
        check(gzip(&[b' '; 10_000]), Ok(10_000));
        check(gzip(&[b' '; 10_001]), Err("DecodedTooLarge"));
        check(gzip(&vec![0; 100_000_000]), Err("DecodedTooLarge"));
        check([gzip(b"{"), gzip(b"}")].concat(), Ok(2));
        check(gzip(b"{}")[..12].to_vec(), Err("BadEncoding(Gzip"));
        check([0x1f, 0x8b, 0x09, 0x00].to_vec(), Err("BadEncoding(Gzip"));
    }

    #[test]
    fn a_beginning_is_no_longer_than_asked_for() {
        let memory = Memory::new(1 << 20);
        let check = |bytes: Vec<u8>, expected: &[u8]| {
            let found = body(bytes, &memory).beginning(4, None).expect("there is memory");
            assert_eq!(found.as_ref(), expected);
        };
        check(b"abcdef".to_vec(), b"abcd");
        check(b"ab".to_vec(), b"ab");
        check(gzip(b"abcdef"), b"abcd");
        check(gzip(b"ab"), b"ab");
        check(gzip(&vec![b'x'; 10_000_000]), b"xxxx");
        let whole = gzip(b"ab");
        check(whole[..whole.len() - 4].to_vec(), b"ab");
        check([0x1f, 0x8b, 0x09, 0x00].to_vec(), b"");
    }

    #[test]
    fn memory_is_shared_and_given_back() {
        let memory = Memory::new(10 * STEP);
        let mut one = memory.reserve();
        assert!(one.grow_to(1).is_ok() && one.grow_to(9 * STEP).is_ok());
        assert_eq!(memory.used(), 9 * STEP);
        let mut two = memory.reserve();
        assert!(two.grow_to(STEP).is_ok());
        assert!(matches!(two.grow_to(STEP + 1), Err(BodyFault::NoMemory)));
        drop(one);
        assert!(two.grow_to(STEP + 1).is_ok());
        drop(two);
        assert_eq!(memory.used(), 0);
    }
}
