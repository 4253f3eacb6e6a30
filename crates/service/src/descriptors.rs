//! How many files and connections a process may have open. Systems begin programs with 1,024, for the sake of those that use `select`, and let
//! them have more if they ask; a listener that runs out of them keeps its own process from opening its files.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// What a process asks for at most: connections of all its listeners, files of its log, and room.
const WANTED: u64 = 65_536;
/// What listeners leave to files, to connections to others, and to each other.
const RESERVED: u64 = 128;

/// Raises how many this process may have as far as it may by itself, and returns how many those are; none: any number.
pub fn raise() -> Option<u64> {
    let limit = getrlimit(Resource::Nofile);
    let raised = limit.maximum.map_or(WANTED, |maximum| maximum.min(WANTED));
    if limit.current.is_some_and(|current| current < raised) {
        // Where it is refused, the process goes on with what it has.
        let _ = setrlimit(Resource::Nofile, Rlimit { current: Some(raised), maximum: limit.maximum });
    }
    getrlimit(Resource::Nofile).current
}

/// Returns how many connections a listener may have of those that it is set to, so that there is room for all else: a half at least.
pub(crate) fn for_connections(set: usize) -> usize {
    getrlimit(Resource::Nofile).current.map_or(set, |limit| bounded(set, limit))
}

fn bounded(set: usize, limit: u64) -> usize {
    let left = limit.saturating_sub(RESERVED).max(limit / 2);
    set.min(usize::try_from(left).unwrap_or(usize::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_leaves_room() {
        assert_eq!([64, 256, 1_024, 20_000].map(|limit| bounded(16_384, limit)), [32, 128, 896, 16_384]);
        assert_eq!(bounded(64, 20_000), 64);
        let had = raise().expect("a limit");
        assert_eq!(raise(), Some(had));
    }
}
