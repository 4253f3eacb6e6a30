//! The bytes on disk: both headers, the frame of a record, and the names of files. All integers are little-endian.
//!
//! - The log's header, file `header`: `magic "weir-log" | version u32 | partitions u32 | log id, 16 bytes | crc32c u32`,
//!   the CRC over all that lies before it.
//! - A log file's header: `magic "weirfile" | version u32 | log partition u32 | base offset u64 | file id, 16 bytes |
//!   crc32c u32`. The file id is random and belongs to this one file.
//! - A record's frame: `length u32 | crc32c u32 | offset u64 | payload`. The length is the payload's, 1 to
//!   [`RECORD_BYTES_MAX`]; its highest bit is set on the first record after a sync. The CRC covers file id, offset,
//!   length word and payload, so bytes that another file left on the same blocks are never read as a record of this one.

use uuid::Uuid;

use crate::Offset;

/// Version of all that is described here.
pub(super) const VERSION: u32 = 1;
/// Bytes of the log's header.
pub(super) const LOG_HEADER_BYTES: usize = 36;
/// Bytes of a log file's header.
pub(super) const FILE_HEADER_BYTES: usize = 44;
/// Bytes of a frame before its payload.
pub(super) const FRAME_BYTES: usize = 16;
/// Bytes of one payload: far above any event, far below what a reader should believe of a damaged length.
pub(super) const RECORD_BYTES_MAX: usize = 16 * 1024 * 1024;
/// The fewest bytes that a record takes.
pub(super) const RECORD_BYTES_MIN: usize = FRAME_BYTES + 1;

const LOG_MAGIC: &[u8; 8] = b"weir-log";
const FILE_MAGIC: &[u8; 8] = b"weirfile";
const FIRST_AFTER_SYNC: u32 = 1 << 31;

/// What the log's header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LogHeader {
    pub(super) log_id: Uuid,
    pub(super) partitions: u32,
}

/// What a log file's header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FileHeader {
    pub(super) file_id: Uuid,
    pub(super) partition: u32,
    pub(super) base: Offset,
}

/// The CRC of a file's id, with which every record's CRC begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Salt(u32);

/// What a frame says before its payload. Nothing in it is trusted until [`Head::matches`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Head {
    length_word: u32,
    crc: u32,
    /// The record's own offset.
    pub(super) offset: Offset,
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(word)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
}

fn uuid_at(bytes: &[u8], at: usize) -> Uuid {
    let mut id = [0; 16];
    id.copy_from_slice(&bytes[at..at + 16]);
    Uuid::from_bytes(id)
}

/// Checks length, magic, CRC and version, in this order: a version is only trusted with its CRC.
fn check_header(bytes: &[u8], magic: &[u8; 8], length: usize) -> Result<(), String> {
    if bytes.len() < length {
        return Err(format!("the header has {} bytes instead of {length}", bytes.len()));
    }
    if &bytes[..8] != magic {
        return Err(format!("the header does not begin with \"{}\"", magic.escape_ascii()));
    }
    if u32_at(bytes, length - 4) != crc32c::crc32c(&bytes[..length - 4]) {
        return Err("the header's checksum does not match".to_owned());
    }
    match u32_at(bytes, 8) {
        VERSION => Ok(()),
        found => Err(format!("format version {found}; this build reads version {VERSION}")),
    }
}

impl LogHeader {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(LOG_HEADER_BYTES);
        bytes.extend_from_slice(LOG_MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&self.partitions.to_le_bytes());
        bytes.extend_from_slice(self.log_id.as_bytes());
        bytes.extend_from_slice(&crc32c::crc32c(&bytes).to_le_bytes());
        bytes
    }

    /// # Errors
    /// What is wrong with the bytes.
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, String> {
        check_header(bytes, LOG_MAGIC, LOG_HEADER_BYTES)?;
        Ok(LogHeader { partitions: u32_at(bytes, 12), log_id: uuid_at(bytes, 16) })
    }
}

impl FileHeader {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(FILE_HEADER_BYTES);
        bytes.extend_from_slice(FILE_MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&self.partition.to_le_bytes());
        bytes.extend_from_slice(&self.base.to_le_bytes());
        bytes.extend_from_slice(self.file_id.as_bytes());
        bytes.extend_from_slice(&crc32c::crc32c(&bytes).to_le_bytes());
        bytes
    }

    /// Decodes the header of the file that lies where log partition `partition` keeps offset `base`.
    /// # Errors
    /// What is wrong with the bytes.
    pub(super) fn decode(bytes: &[u8], partition: u32, base: Offset) -> Result<Self, String> {
        check_header(bytes, FILE_MAGIC, FILE_HEADER_BYTES)?;
        let header = FileHeader { partition: u32_at(bytes, 12), base: u64_at(bytes, 16), file_id: uuid_at(bytes, 24) };
        if (header.partition, header.base) != (partition, base) {
            let (found, at) = (header.partition, header.base);
            return Err(format!("the header is that of log partition {found} from offset {at}: the file was moved here"));
        }
        Ok(header)
    }

    pub(super) fn salt(&self) -> Salt {
        Salt(crc32c::crc32c(self.file_id.as_bytes()))
    }
}

impl Salt {
    fn crc(self, offset: Offset, length_word: u32, payload: &[u8]) -> u32 {
        let mut fixed = [0; 12];
        fixed[..8].copy_from_slice(&offset.to_le_bytes());
        fixed[8..].copy_from_slice(&length_word.to_le_bytes());
        crc32c::crc32c_append(crc32c::crc32c_append(self.0, &fixed), payload)
    }

    /// Appends the frame of one record. The payload has 1 to [`RECORD_BYTES_MAX`] bytes, which the caller has checked.
    pub(super) fn encode(self, into: &mut Vec<u8>, offset: Offset, first_after_sync: bool, payload: &[u8]) {
        let length_word = payload.len() as u32 | if first_after_sync { FIRST_AFTER_SYNC } else { 0 };
        into.extend_from_slice(&length_word.to_le_bytes());
        into.extend_from_slice(&self.crc(offset, length_word, payload).to_le_bytes());
        into.extend_from_slice(&offset.to_le_bytes());
        into.extend_from_slice(payload);
    }
}

impl Head {
    /// Reads the frame at the start of `bytes`, of which there are at least [`FRAME_BYTES`].
    pub(super) fn decode(bytes: &[u8]) -> Self {
        Head { length_word: u32_at(bytes, 0), crc: u32_at(bytes, 4), offset: u64_at(bytes, 8) }
    }

    /// Returns the payload's length, or nothing if no record is that long.
    pub(super) fn length(&self) -> Option<usize> {
        let length = (self.length_word & !FIRST_AFTER_SYNC) as usize;
        (1..=RECORD_BYTES_MAX).contains(&length).then_some(length)
    }

    /// Returns whether all records before this one had been synced when it was written.
    pub(super) fn is_first_after_sync(&self) -> bool {
        self.length_word & FIRST_AFTER_SYNC != 0
    }

    pub(super) fn matches(&self, salt: Salt, payload: &[u8]) -> bool {
        salt.crc(self.offset, self.length_word, payload) == self.crc
    }
}

/// Returns the name of the log file that begins with an offset. Names sort as offsets do.
pub(super) fn file_name(base: Offset) -> String {
    format!("{base:020}.log")
}

/// Returns the offset with which a log file begins, or nothing if the name is no log file's.
pub(super) fn base_of(name: &str) -> Option<Offset> {
    let base = name.strip_suffix(".log").filter(|digits| digits.len() == 20)?.parse().ok()?;
    (file_name(base) == name).then_some(base)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG_ID: Uuid = Uuid::from_u128(0x0011_2233_4455_6677_8899_aabb_ccdd_eeff);
    const FILE: FileHeader = FileHeader { file_id: LOG_ID, partition: 7, base: 1_000_000 };

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Golden bytes: logs outlive builds. The CRCs were computed by another implementation (Python, bit by bit).
    #[test]
    fn bytes_of_version_1_never_change() {
        let check = |found: Vec<u8>, golden: &str| assert_eq!(hex(&found), golden.replace(' ', ""));
        check(
            LogHeader { log_id: LOG_ID, partitions: 8 }.encode(),
            "776569722d6c6f67 01000000 08000000 00112233445566778899aabbccddeeff c89472fb",
        );
        check(FILE.encode(), "7765697266696c65 01000000 07000000 40420f0000000000 00112233445566778899aabbccddeeff 70aa5066");
        let mut frame = Vec::new();
        FILE.salt().encode(&mut frame, 1_000_000, true, b"hello");
        check(frame, "05000080 e2661273 40420f0000000000 68656c6c6f");
        let mut frame = Vec::new();
        FILE.salt().encode(&mut frame, 1_000_001, false, b"hello");
        check(frame, "05000000 6b0dfe30 41420f0000000000 68656c6c6f");
    }

    #[test]
    fn headers_come_back_and_damage_is_named() {
        let log = LogHeader { log_id: LOG_ID, partitions: 8 };
        assert_eq!(LogHeader::decode(&log.encode()), Ok(log));
        assert_eq!(FileHeader::decode(&FILE.encode(), 7, 1_000_000), Ok(FILE));

        let check = |change: &dyn Fn(&mut Vec<u8>), expected: &str| {
            let mut bytes = FILE.encode();
            change(&mut bytes);
            assert_eq!(FileHeader::decode(&bytes, 7, 1_000_000).expect_err("refused"), expected);
        };
        check(&|bytes| bytes.truncate(43), "the header has 43 bytes instead of 44");
        check(&|bytes| bytes[0] = b'W', "the header does not begin with \"weirfile\"");
        check(&|bytes| bytes[20] ^= 1, "the header's checksum does not match");
        check(
            &|bytes| {
                bytes[8] = 2;
                let crc = crc32c::crc32c(&bytes[..40]);
                bytes[40..].copy_from_slice(&crc.to_le_bytes());
            },
            "format version 2; this build reads version 1",
        );
        let moved = FileHeader::decode(&FILE.encode(), 6, 1_000_000).expect_err("refused");
        assert_eq!(moved, "the header is that of log partition 7 from offset 1000000: the file was moved here");
    }

    #[test]
    fn every_flipped_bit_of_a_frame_is_noticed() {
        let mut frame = Vec::new();
        FILE.salt().encode(&mut frame, 5, false, b"payload");
        let valid = |bytes: &[u8]| {
            let head = Head::decode(bytes);
            head.offset == 5 && head.length() == Some(7) && head.matches(FILE.salt(), &bytes[FRAME_BYTES..])
        };
        assert!(valid(&frame));
        for bit in 0..frame.len() * 8 {
            let mut damaged = frame.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(!valid(&damaged), "bit {bit}");
        }
        let other = FileHeader { file_id: Uuid::from_u128(1), ..FILE };
        assert!(!Head::decode(&frame).matches(other.salt(), b"payload"), "a record of another file");
    }

    #[test]
    fn lengths_beyond_the_bounds_are_none() {
        let check = |word: u32, expected: Option<usize>| {
            let mut bytes = [0; FRAME_BYTES];
            bytes[..4].copy_from_slice(&word.to_le_bytes());
            assert_eq!(Head::decode(&bytes).length(), expected, "{word:#x}");
        };
        check(0, None);
        check(1, Some(1));
        check(FIRST_AFTER_SYNC | 1, Some(1));
        check(RECORD_BYTES_MAX as u32, Some(RECORD_BYTES_MAX));
        check(RECORD_BYTES_MAX as u32 + 1, None);
        check(u32::MAX, None);
    }

    #[test]
    fn names_sort_as_offsets_do() {
        assert_eq!(file_name(12), "00000000000000000012.log");
        assert_eq!(base_of("00000000000000000012.log"), Some(12));
        assert_eq!(base_of(&file_name(u64::MAX)), Some(u64::MAX));
        for name in ["12.log", "00000000000000000012.tmp", "+0000000000000000012.log", "99999999999999999999.log", ""] {
            assert_eq!(base_of(name), None, "{name}");
        }
    }
}
