//! Where a user's records lie: one hash, used for the Kafka partition, the embedded log, and sealed segments.

use crate::event::UserId;

/// Number of buckets, fixed for ever: log partitions are groups of buckets, so their number divides this.
pub const BUCKETS: u32 = 64;

/// The bucket of a user, `0..64`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bucket(u8);

impl Bucket {
    /// Computes the bucket from the 36 lowercase ASCII bytes of the user id.
    /// Depends on the id only: every client, process and machine agrees, today and later.
    /// Source: Apache Kafka, `org.apache.kafka.common.utils.Utils.murmur2` and `toPositive`, then mod 64.
    pub fn of(user: UserId) -> Self {
        let mut text = [0u8; 36];
        user.0.hyphenated().encode_lower(&mut text);
        Bucket(((murmur2(&text) & 0x7fff_ffff) % BUCKETS) as u8)
    }

    /// Returns the bucket's number, `0..64`.
    pub fn number(self) -> u32 {
        u32::from(self.0)
    }

    /// Returns the log partition that holds this bucket in a log of `partitions` partitions.
    /// # Panics
    /// If `partitions` does not divide 64; a log refuses such a number when it is made.
    pub fn log_partition(self, partitions: u32) -> u32 {
        assert!(partitions > 0 && BUCKETS.is_multiple_of(partitions), "{partitions} does not divide {BUCKETS}");
        self.number() % partitions
    }
}

/// Hashes bytes as Kafka's default partitioner does: MurmurHash2, 32 bits, seed 0x9747b28c, little-endian words.
/// Source: Austin Appleby, MurmurHash2 (public domain), as restated in Apache Kafka's `Utils.murmur2`.
pub fn murmur2(data: &[u8]) -> u32 {
    const M: u32 = 0x5bd1_e995;
    const R: u32 = 24;
    let mut hash = 0x9747_b28c ^ data.len() as u32;
    let mut words = data.chunks_exact(4);
    for word in &mut words {
        let mut k = u32::from_le_bytes([word[0], word[1], word[2], word[3]]).wrapping_mul(M);
        k ^= k >> R;
        hash = hash.wrapping_mul(M) ^ k.wrapping_mul(M);
    }
    let tail = words.remainder();
    if !tail.is_empty() {
        for (place, byte) in tail.iter().enumerate() {
            hash ^= u32::from(*byte) << (8 * place);
        }
        hash = hash.wrapping_mul(M);
    }
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(M);
    hash ^ (hash >> 15)
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    /// The vectors are those of Kafka's own test of its partitioner (`UtilsTest.testMurmur2`).
    #[test]
    fn murmur2_agrees_with_kafka() {
        let vectors: [(&str, i32); 6] = [
            ("21", -973_932_308),
            ("foobar", -790_332_482),
            ("a-little-bit-long-string", -985_981_536),
            ("a-little-bit-longer-string", -1_486_304_829),
            ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58_897_971),
            ("abc", 479_470_107),
        ];
        for (text, expected) in vectors {
            assert_eq!(murmur2(text.as_bytes()) as i32, expected, "{text}");
        }
    }

    /// Computed by another implementation (Python). Fixed for ever: a change here would send a user's later records to another partition than the earlier ones.
    #[test]
    fn buckets_of_known_users_never_change() {
        let vectors = [
            ("00000000-0000-0000-0000-000000000000", 61),
            ("6ba7b812-9dad-11d1-80b4-00c04fd430c8", 18),
            ("ffffffff-ffff-ffff-ffff-ffffffffffff", 50),
        ];
        for (text, expected) in vectors {
            let user = UserId(Uuid::parse_str(text).expect("a constant"));
            assert_eq!(Bucket::of(user).number(), expected, "{text}");
        }
    }

    #[test]
    fn users_spread_evenly() {
        let mut counts = [0u32; BUCKETS as usize];
        for n in 0..64_000u128 {
            counts[Bucket::of(UserId(Uuid::from_u128(n))).number() as usize] += 1;
        }
        // 1,000 expected per bucket, standard deviation 31.4: six of them are never exceeded by chance.
        assert!(counts.iter().all(|count| (812..=1188).contains(count)), "{counts:?}");
    }
}
