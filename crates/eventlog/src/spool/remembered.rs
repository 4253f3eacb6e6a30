//! Which log was agreed on, noted so that a collector starts while the log is down.

use std::io;
use std::path::Path;

use events::bucket::BUCKETS;
use uuid::Uuid;

use super::small_file;
use crate::LogIdentity;

const TITLE: &str = "weir log 1";

/// Returns the identity that was noted last; nothing if none ever was. Blocks.
/// # Errors
/// [`io::ErrorKind::InvalidData`] if the file is damaged: then no log is agreed on, and the next agreement writes it anew.
pub fn remembered(file: &Path) -> io::Result<Option<LogIdentity>> {
    let Some([log_id, partitions]) = small_file::read(file, TITLE, ["log_id", "partitions"])? else { return Ok(None) };
    let log_id = Uuid::try_parse(&log_id).ok();
    let partitions = partitions.parse().ok().filter(|number: &u32| *number > 0 && BUCKETS.is_multiple_of(*number));
    match (log_id, partitions) {
        (Some(log_id), Some(partitions)) => Ok(Some(LogIdentity { log_id, partitions })),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "no log id, or a number of log partitions that does not divide 64")),
    }
}

/// Notes an identity in place of the one before, durably. The file is whole at any time, with mode 0600. Blocks.
/// # Errors
/// Whatever the system says; then the file is as it was.
pub fn remember(file: &Path, identity: LogIdentity) -> io::Result<()> {
    let LogIdentity { log_id, partitions } = identity;
    small_file::replace(file, TITLE, &[("log_id", log_id.to_string()), ("partitions", partitions.to_string())])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_noted_is_read_and_damage_is_told() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("log");
        assert_eq!(remembered(&file).expect("no file is no error"), None);
        let first = LogIdentity { log_id: Uuid::from_u128(7), partitions: 8 };
        remember(&file, first).expect("noted");
        assert_eq!(remembered(&file).expect("whole"), Some(first));
        let second = LogIdentity { log_id: Uuid::from_u128(8), partitions: 64 };
        remember(&file, second).expect("noted");
        assert_eq!(remembered(&file).expect("whole"), Some(second));

        let whole = std::fs::read(&file).expect("is there");
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 1;
            std::fs::write(&file, &damaged).expect("written");
            let error = remembered(&file).expect_err("one bit is wrong");
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "byte {at}");
            std::fs::write(&file, &whole[..at]).expect("written");
            assert_eq!(remembered(&file).expect_err("it is cut").kind(), io::ErrorKind::InvalidData, "cut at {at}");
        }
        let odd = LogIdentity { log_id: Uuid::from_u128(8), partitions: 7 };
        remember(&file, odd).expect("noted");
        assert_eq!(remembered(&file).expect_err("7 does not divide 64").kind(), io::ErrorKind::InvalidData);
    }
}
