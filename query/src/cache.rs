//! Answers cached while what they were made of stays the same.

use std::hash::Hash;
use std::sync::{Mutex, PoisonError};

use hashlink::LruCache;

/// Values by key, each with what it was made of. Those used last are kept, up to so many bytes.
pub(crate) struct Cache<K, B, V> {
    bytes_max: usize,
    entries: Mutex<LruCache<K, Entry<B, V>>>,
}

struct Entry<B, V> {
    basis: B,
    value: V,
    bytes: usize,
}

impl<K: Eq + Hash, B: PartialEq, V: Clone> Cache<K, B, V> {
    /// Makes an empty one.
    pub(crate) fn new(bytes_max: usize) -> Self {
        Cache { bytes_max, entries: Mutex::new(LruCache::new_unbounded()) }
    }

    /// Returns the value of a key if it was made of this.
    pub(crate) fn get(&self, key: &K, basis: &B) -> Option<V> {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries.get(key).filter(|entry| entry.basis == *basis).map(|entry| entry.value.clone())
    }

    /// Puts a value in the place of the one that the key had. One that takes more than a quarter of all room is made each time.
    pub(crate) fn put(&self, key: K, basis: B, value: V, bytes: usize) {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries.remove(&key);
        if bytes <= self.bytes_max / 4 {
            entries.insert(key, Entry { basis, value, bytes });
        }
        let mut all: usize = entries.iter().map(|(_, entry)| entry.bytes).sum();
        while all > self.bytes_max
            && let Some((_, oldest)) = entries.remove_lru()
        {
            all -= oldest.bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_that_of_what_it_was_made_of() {
        let cache = Cache::new(100);
        cache.put("a", 1, "of 1", 10);
        assert_eq!((cache.get(&"a", &1), cache.get(&"a", &2), cache.get(&"b", &1)), (Some("of 1"), None, None));
        cache.put("a", 2, "of 2", 10);
        assert_eq!((cache.get(&"a", &1), cache.get(&"a", &2)), (None, Some("of 2")));
    }

    #[test]
    fn what_was_used_longest_ago_leaves_first_and_what_is_large_is_never_kept() {
        let cache = Cache::new(100);
        let kept = || (1..=5).filter(|key| cache.get(key, &()).is_some()).collect::<Vec<_>>();
        for key in 1..=4 {
            cache.put(key, (), (), 25);
        }
        cache.get(&1, &());
        cache.put(5, (), (), 1);
        assert_eq!(kept(), [1, 3, 4, 5], "2 was used longest ago");
        cache.put(3, (), (), 26);
        assert_eq!(kept(), [1, 4, 5], "what was kept of it is of something else");
    }
}
