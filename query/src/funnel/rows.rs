//! The events that a funnel needs, of all its units, in memory and counted there.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{Array, AsArray, RecordBatch, StringArray};
use arrow::datatypes::{Int64Type, TimestampMicrosecondType};
use datafusion::common::{DataFusionError, Result};
use datafusion::execution::SendableRecordBatchStream;
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryPool, MemoryReservation};
use futures_util::TryStreamExt;

use super::select::Selection;

/// One event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// Microseconds since 1970.
    pub time: i64,
    /// The unit, as a number of [`Rows`].
    pub unit: u32,
    /// The steps that it may be.
    pub mask: u32,
    /// The exclusions that it is.
    pub excluded: u32,
    /// Its place in [`Rows::more`], if something of it is wanted.
    pub more: u32,
}

/// What some funnels want to know of an event.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct More {
    /// When it was stored, among those of its unit.
    pub arrival: i64,
    /// Its value, as a number of [`Rows::values`]; 0 for none.
    pub value: u32,
    /// The values that a chain shares, likewise; 0 if one is missing.
    pub held: u32,
}

/// The events of all units.
#[derive(Debug)]
pub struct Rows {
    /// In order of unit, time and arrival once they are sorted.
    pub rows: Vec<Row>,
    /// What else is wanted of them.
    pub more: Vec<More>,
    /// The user ids of the units.
    pub users: Vec<[u8; 16]>,
    /// The values; the first one stands for none.
    pub values: Texts,
    held: Texts,
    /// Which of the names that were looked for some event has.
    pub found: u64,
    of_user: HashMap<[u8; 16], u32>,
    reservation: MemoryReservation,
}

/// Texts by number.
#[derive(Debug, Default)]
pub struct Texts {
    texts: Vec<Arc<str>>,
    numbers: HashMap<Arc<str>, u32>,
    bytes: usize,
}

impl Texts {
    fn number(&mut self, text: &str) -> u32 {
        if let Some(number) = self.numbers.get(text) {
            return *number;
        }
        let text: Arc<str> = text.into();
        self.bytes += text.len();
        self.texts.push(text.clone());
        let number = self.texts.len() as u32;
        self.numbers.insert(text, number);
        number
    }

    /// Returns the text of a number; none for 0.
    pub fn text(&self, number: u32) -> Option<&str> {
        (number as usize).checked_sub(1).map(|index| &*self.texts[index])
    }
}

/// Bytes of an entry of a hash map beside its key and value, about.
const ENTRY_BYTES: usize = 16;

impl Rows {
    /// Makes room within what the query may use.
    pub fn new(pool: &Arc<dyn MemoryPool>) -> Self {
        Rows {
            rows: Vec::new(),
            more: Vec::new(),
            users: Vec::new(),
            values: Texts::default(),
            held: Texts::default(),
            found: 0,
            of_user: HashMap::new(),
            reservation: MemoryConsumer::new("funnel").register(pool),
        }
    }

    /// Reads all events of a selection's plan, of the users that `is_wanted` lets pass, and sorts them.
    /// # Errors
    /// Those of the plan, and of the memory pool.
    pub async fn read(
        &mut self,
        mut stream: SendableRecordBatchStream,
        selection: &Selection,
        is_wanted: impl Fn(&[u8; 16]) -> bool,
    ) -> Result<()> {
        while let Some(batch) = stream.try_next().await? {
            self.take(&batch, selection, &is_wanted)?;
            self.reservation.try_resize(self.bytes())?;
        }
        let (rows, more) = (&mut self.rows, &self.more);
        if selection.needs_arrival {
            rows.sort_unstable_by_key(|row| (row.unit, row.time, more[row.more as usize].arrival));
        } else {
            rows.sort_unstable_by_key(|row| (row.unit, row.time));
        }
        Ok(())
    }

    /// Counts what an answer holds beside the events.
    /// # Errors
    /// Those of the memory pool.
    pub fn hold(&self, bytes: usize) -> Result<()> {
        self.reservation.try_resize(self.bytes() + bytes)
    }

    fn bytes(&self) -> usize {
        let texts = |texts: &Texts| 2 * texts.bytes + texts.texts.len() * (3 * size_of::<Arc<str>>() + ENTRY_BYTES);
        self.rows.capacity() * size_of::<Row>()
            + self.more.capacity() * size_of::<More>()
            + self.users.capacity() * 16
            + self.of_user.capacity() * (20 + ENTRY_BYTES)
            + texts(&self.values)
            + texts(&self.held)
    }

    fn take(&mut self, batch: &RecordBatch, selection: &Selection, is_wanted: &impl Fn(&[u8; 16]) -> bool) -> Result<()> {
        let column =
            |name: &str| batch.column_by_name(name).ok_or_else(|| DataFusionError::Internal(format!("no column {name}")));
        let users = column("user_key")?.as_fixed_size_binary();
        let times = column("event_time")?.as_primitive::<TimestampMicrosecondType>();
        let (masks, excluded) = (column("mask")?.as_primitive::<Int64Type>(), column("excluded")?.as_primitive::<Int64Type>());
        let values = selection.value.is_some().then(|| column("value")).transpose()?.map(|values| values.as_string::<i32>());
        let held = (0..selection.held.len()).map(|index| Ok(column(&format!("held_{index}"))?.as_string::<i32>()));
        let held: Vec<&StringArray> = held.collect::<Result<_>>()?;
        let arrivals =
            selection.needs_arrival.then(|| column("arrival")).transpose()?.map(|column| column.as_primitive::<Int64Type>());
        let found = (!selection.looked_for.is_empty())
            .then(|| column("found"))
            .transpose()?
            .map(|column| column.as_primitive::<Int64Type>());
        let wants_more = values.is_some() || !held.is_empty() || arrivals.is_some();
        let mut key = String::new();
        for row in 0..batch.num_rows() {
            if let Some(found) = found {
                self.found |= found.value(row) as u64;
            }
            let Ok(user) = <[u8; 16]>::try_from(users.value(row)) else {
                continue;
            };
            if times.is_null(row) || !is_wanted(&user) {
                continue;
            }
            let next = self.users.len() as u32;
            let unit = *self.of_user.entry(user).or_insert(next);
            if unit == next {
                self.users.push(user);
            }
            let mut event = Row {
                time: times.value(row),
                unit,
                mask: masks.value(row) as u32,
                excluded: excluded.value(row) as u32,
                more: self.more.len() as u32,
            };
            if wants_more {
                let value =
                    values.filter(|values| values.is_valid(row)).map_or(0, |values| self.values.number(values.value(row)));
                key.clear();
                for held in held.iter().filter(|held| held.is_valid(row)) {
                    // The length keeps one text from running into the next.
                    key.push_str(&format!("{}:{}", held.value(row).len(), held.value(row)));
                }
                let has_all = !held.is_empty() && held.iter().all(|held| held.is_valid(row));
                let held = if has_all { self.held.number(&key) } else { 0 };
                self.more.push(More { arrival: arrivals.map_or(0, |arrivals| arrivals.value(row)), value, held });
            } else {
                event.more = 0;
            }
            self.rows.push(event);
        }
        Ok(())
    }
}
