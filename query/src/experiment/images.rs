//! Images kept from one answer to the next.
//!
//! While nothing was written, an image is that of now. When facts were stored in between, the cuts of the log say which:
//! participation and attribution of their users are read, and replace what was known of them. After anything else (another
//! catalogue, a recomputation, a log that was read again) everybody is read.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use sqlx::AssertSqlSafe;
use uuid::Uuid;

use super::image::Image;
use super::reading::{self, Question, Who};
use super::settings::Dimension;
use crate::engine::{self, Session};
use crate::error::Refusal;
use crate::metrics::Metrics;
use crate::snapshot::{Moment, Snapshot};

/// Images at most, however small.
const IMAGES_MAX: usize = 64;
/// Everybody is read if more records came than one for this many users, ..
const USERS_PER_RECORD: u64 = 8;
/// .. and more than these.
const RECORDS_MIN: u64 = 10_000;

/// What an image is of.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Asked {
    /// The project of the token.
    pub project: Uuid,
    /// The experiment as it was asked for, name or id.
    pub experiment: String,
    /// What the variants are compared with, which is their first one.
    pub baseline: Option<String>,
    /// See [`Question`].
    pub until: Option<i64>,
    /// See [`Question`].
    pub has_before: bool,
    /// See [`Question`].
    pub dimension: Option<Dimension>,
}

/// The image of one question and the moment that it is of.
#[derive(Default)]
pub struct Kept {
    of: Option<Of>,
}

struct Of {
    experiment: Uuid,
    variants: Vec<Uuid>,
    moment: Moment,
    image: Arc<Image>,
    /// The number of each user; made when it is first needed.
    numbers: Option<HashMap<[u8; 16], u32>>,
}

/// How an image comes to be that of now.
#[derive(Debug, PartialEq, Eq)]
enum Way {
    /// It is already.
    Same,
    /// Facts of these offsets came: log, partition, from, to.
    Facts(Vec<(Uuid, i32, i64, i64)>),
    /// By being read anew.
    Anew,
}

impl Kept {
    /// Returns the image of a snapshot, which must not be older than the one before. What fails leaves nothing behind that is not of its moment.
    /// # Errors
    /// [`Refusal`].
    pub(crate) async fn follow(
        &mut self,
        session: &Session,
        snapshot: &Arc<Snapshot>,
        question: &Question<'_>,
        metrics: &Metrics,
    ) -> Result<Arc<Image>, Refusal> {
        let now = snapshot.moment();
        let known = self.of.as_mut().filter(|of| of.experiment == question.experiment && of.variants == question.variants);
        let (way, known) = match known {
            Some(of) => (way(&of.moment, now, of.image.users.len()), Some(of)),
            None => (Way::Anew, None),
        };
        match (way, known) {
            (Way::Same, Some(of)) => {
                metrics.image("same");
                Ok(of.image.clone())
            }
            (Way::Facts(ranges), Some(of)) => {
                let touched = touched(snapshot, &ranges, question.experiment).await;
                let touched = touched.map_err(|error| engine::database_refusal(&error))?;
                if !touched.is_empty() {
                    let newer = reading::read(session, snapshot, question, &Who::These(touched)).await?;
                    // From here on nothing waits, so that nobody finds an image half done.
                    let number = |image: &Image| image.users.keys.iter().zip(0..).map(|(key, number)| (*key, number)).collect();
                    let numbers = of.numbers.get_or_insert_with(|| number(&of.image));
                    Arc::make_mut(&mut of.image).replace(newer, numbers);
                }
                metrics.image("followed");
                of.moment = now.clone();
                Ok(of.image.clone())
            }
            _ => {
                // Two of them at one time are too many.
                self.of = None;
                let image = Arc::new(reading::read(session, snapshot, question, &Who::Everyone).await?);
                metrics.image("read");
                self.of = Some(Of {
                    experiment: question.experiment,
                    variants: question.variants.to_vec(),
                    moment: now.clone(),
                    image: image.clone(),
                    numbers: None,
                });
                Ok(image)
            }
        }
    }

    fn bytes(&self) -> usize {
        let bytes = |of: &Of| of.image.bytes() + of.numbers.as_ref().map_or(0, |numbers| numbers.capacity() * 24);
        self.of.as_ref().map_or(0, bytes)
    }
}

/// Compares two moments, of which the second one is not the earlier one.
fn way(then: &Moment, now: &Moment, users: usize) -> Way {
    if then == now {
        return Way::Same;
    }
    if then.catalogue != now.catalogue || then.cuts.keys().any(|place| !now.cuts.contains_key(place)) {
        return Way::Anew;
    }
    let mut ranges = Vec::new();
    for ((log_id, partition), cut) in &now.cuts {
        let from = match then.cuts.get(&(*log_id, *partition)) {
            Some(known) if known == cut => continue,
            // Written without facts, so it was a recomputation; or the log is being read again.
            Some(known) if known.offset >= cut.offset => return Way::Anew,
            Some(known) => known.offset,
            // A new log; without facts so far it changes nothing.
            None if cut.offset == 0 => continue,
            None => 0,
        };
        ranges.push((*log_id, *partition, from, cut.offset));
    }
    let records: u64 = ranges.iter().map(|(_, _, from, to)| from.abs_diff(*to)).sum();
    if records > RECORDS_MIN.max(users as u64 / USERS_PER_RECORD) { Way::Anew } else { Way::Facts(ranges) }
}

/// Returns the users of an experiment's impressions and of all conversions at these offsets.
async fn touched(snapshot: &Snapshot, ranges: &[(Uuid, i32, i64, i64)], experiment: Uuid) -> Result<Vec<Uuid>, sqlx::Error> {
    let range = |(log_id, partition, from, to): &(Uuid, i32, i64, i64)| {
        format!("(log_id = '{log_id}' AND log_partition = {partition} AND log_offset >= {from} AND log_offset < {to})")
    };
    let exact: Vec<String> = ranges.iter().map(range).collect();
    if exact.is_empty() {
        return Ok(Vec::new());
    }
    // One range of all offsets, for the index.
    let first = ranges.iter().map(|(_, _, from, _)| *from).min().unwrap_or(0);
    let end = ranges.iter().map(|(_, _, _, to)| *to).max().unwrap_or(0);
    let stored = format!(
        "project_id = '{}' AND log_offset >= {first} AND log_offset < {end} AND ({})",
        snapshot.project(),
        exact.join(" OR ")
    );
    let users = format!(
        "SELECT user_id FROM impressions WHERE experiment_id = '{experiment}' AND {stored}
         UNION SELECT user_id FROM conversions WHERE {stored}"
    );
    sqlx::query_scalar(AssertSqlSafe(users)).fetch_all(&mut **snapshot.keeper().await).await
}

/// All images that are kept.
pub struct Images {
    bytes_max: usize,
    places: Mutex<HashMap<Asked, Place>>,
}

struct Place {
    kept: Arc<tokio::sync::Mutex<Kept>>,
    bytes: usize,
    /// Raised by one with each use.
    used: u64,
}

impl Images {
    /// Makes an empty one that holds this many bytes, about.
    pub fn new(bytes_max: usize) -> Self {
        Images { bytes_max, places: Mutex::default() }
    }

    /// Returns the place of an image. Locked from before the snapshot is taken, it never meets an older one.
    pub fn place(&self, asked: &Asked) -> Arc<tokio::sync::Mutex<Kept>> {
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        let used = places.values().map(|place| place.used).max().unwrap_or(0) + 1;
        let place = places.entry(asked.clone()).or_insert_with(|| Place { kept: Arc::default(), bytes: 0, used });
        place.used = used;
        place.kept.clone()
    }

    /// Takes note of what an image now needs, and drops those that were not used for longest until all fit.
    pub fn note(&self, asked: &Asked, kept: &Kept) {
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(place) = places.get_mut(asked) {
            place.bytes = kept.bytes();
        }
        while places.len() > IMAGES_MAX || places.values().map(|place| place.bytes).sum::<usize>() > self.bytes_max {
            let Some(oldest) = places.iter().min_by_key(|(_, place)| place.used).map(|(asked, _)| asked.clone()) else { return };
            places.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::Cut;

    const LOG: Uuid = Uuid::from_u128(7);

    fn moment(catalogue: i64, cuts: &[(u128, i32, i64, i64)]) -> Moment {
        let cut = |(log, partition, offset, change_seq): &(u128, i32, i64, i64)| {
            ((Uuid::from_u128(*log), *partition), Cut { offset: *offset, change_seq: *change_seq })
        };
        Moment { catalogue, cuts: cuts.iter().map(cut).collect() }
    }

    #[test]
    fn what_was_stored_since_decides_what_is_read() {
        let then = moment(1, &[(7, 0, 10, 3), (7, 1, 20, 5)]);
        let check =
            |now: &[(u128, i32, i64, i64)], expected: Way| assert_eq!(way(&then, &moment(1, now), 1_000), expected, "{now:?}");
        check(&[(7, 0, 10, 3), (7, 1, 20, 5)], Way::Same);
        check(&[(7, 0, 10, 3), (7, 1, 25, 6)], Way::Facts(vec![(LOG, 1, 20, 25)]));
        check(&[(7, 0, 10, 4), (7, 1, 25, 6)], Way::Anew); // partition 0 was written without facts
        check(&[(7, 0, 9, 4), (7, 1, 20, 5)], Way::Anew); // a backup was put back
        check(&[(7, 0, 10, 3)], Way::Anew);
        check(&[(7, 0, 10, 3), (7, 1, 20, 5), (8, 0, 0, 0)], Way::Facts(vec![]));
        check(&[(7, 0, 10, 3), (7, 1, 20, 5), (8, 0, 2, 1)], Way::Facts(vec![(Uuid::from_u128(8), 0, 0, 2)]));
        check(&[(7, 0, 10, 3), (7, 1, 20_000, 6)], Way::Anew); // more than reading everybody takes
        assert_eq!(way(&then, &moment(2, &[(7, 0, 10, 3), (7, 1, 20, 5)]), 1_000), Way::Anew, "the catalogue moved");
    }

    #[test]
    fn the_images_used_longest_ago_make_room() {
        let asked = |name: &str| Asked {
            project: Uuid::nil(),
            experiment: name.to_owned(),
            baseline: None,
            until: None,
            has_before: false,
            dimension: None,
        };
        let of = |users: usize| {
            let image =
                Image { users: super::super::image::Users { arms: vec![0; users], ..Default::default() }, ..Image::default() };
            let image = Arc::new(image);
            Kept { of: Some(Of { experiment: LOG, variants: vec![], moment: Moment::default(), image, numbers: None }) }
        };
        let images = Images::new(of(100).bytes() * 2);
        let names = || {
            let mut names: Vec<String> =
                images.places.lock().expect("free").keys().map(|asked| asked.experiment.clone()).collect();
            names.sort();
            names
        };
        for name in ["a", "b", "a", "c"] {
            images.place(&asked(name));
            images.note(&asked(name), &of(100));
        }
        assert_eq!(names(), ["a", "c"]);
        images.place(&asked("large"));
        images.note(&asked("large"), &of(1_000));
        assert!(names().is_empty(), "what alone is too large is not kept, and took the place of all others");
        for number in 0..IMAGES_MAX + 5 {
            images.place(&asked(&number.to_string()));
            images.note(&asked(&number.to_string()), &Kept::default());
        }
        assert_eq!(names().len(), IMAGES_MAX);
    }
}
