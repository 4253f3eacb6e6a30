//! Rollups: new facts are added to the sums of their groups, and to the states that these follow.
//!
//! The sums of every project by day, `daily_rollups`, are a declaration like those of the projects, which the catalogue has. Each row of
//! sums has one writer: the owner of its log partition, or whoever fills in what was stored before. States have two while a rollup is
//! being filled; each locks the states of its events, in the order of their keys, before it adds the difference that it makes.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use catalogue::Catalogue;
use catalogue::rollups::datum::{Datum, Place};
use catalogue::rollups::seen::Seen;
use catalogue::rollups::shape::{Contribution, Folded, Shape, StateKey};
use catalogue::rollups::tables::Statements;
use catalogue::rollups::{Active, By, Rollup};
use hashbrown::HashMap;
use sqlx::{AssertSqlSafe, PgConnection, Row};
use uuid::Uuid;

use crate::commit::StagedRow;

/// The sums by day. They were there before there were declarations: their table counts no rows.
const DAILY: &str = r#"{
    "bots": true,
    "keys": ["day", "kind", "event", "experiment_id", "variant_id", "campaign_id", "component_id", "currency", "is_bot"],
    "measures": {"events": "count", "value": {"sum": "value"}}
}"#;
const DAILY_TABLE: &str = "daily_rollups";

static DAILY_ROLLUP: LazyLock<Result<(Shape, Statements), String>> = LazyLock::new(|| {
    let rollup: Rollup = serde_json::from_str(DAILY).map_err(|error| error.to_string())?;
    let shape = rollup.shape().map_err(|error| error.to_string())?;
    let statements = shape.statements_of(DAILY_TABLE, false);
    Ok((shape, statements))
});

/// In whose sums an event counts: the log, and the log partition.
pub(crate) type Slot = (Uuid, i32);

/// An event in its slot.
pub(crate) type Slotted<'a> = (Seen<'a>, Slot);

/// Adds new facts to the sums of their days, and to the rollups of their projects.
pub(crate) async fn add(
    connection: &mut PgConnection,
    catalogue: &Catalogue,
    log_id: Uuid,
    new: &[StagedRow<'_>],
) -> Result<(), sqlx::Error> {
    let mut projects: BTreeMap<Uuid, Vec<Slotted<'_>>> = BTreeMap::new();
    for row in new {
        let slot = (log_id, row.decoded.partition as i32);
        projects.entry(row.event().project_id.0).or_default().push((Seen::fact(row.fact()), slot));
    }
    let (shape, statements) = DAILY_ROLLUP.as_ref().map_err(|error| sqlx::Error::Decode(error.as_str().into()))?;
    let mut daily = Changes::new(shape);
    for (project, events) in &projects {
        daily.add_events(*project, events);
    }
    daily.write(connection, statements, false).await?;
    for (project, events) in &projects {
        for rollup in catalogue.rollups(*project) {
            add_to(connection, rollup, *project, events).await?;
        }
    }
    Ok(())
}

/// Adds events of a project to one of its rollups.
pub(crate) async fn add_to(
    connection: &mut PgConnection,
    rollup: &Active,
    project: Uuid,
    events: &[Slotted<'_>],
) -> Result<(), sqlx::Error> {
    let mut changes = Changes::new(&rollup.shape);
    if rollup.shape.has_states() {
        follow_states(connection, rollup, project, events, &mut changes).await?;
    } else {
        changes.add_events(project, events);
    }
    changes.write(connection, &rollup.statements, true).await
}

/// Brings the states of events up to date, and records by what their sums change.
async fn follow_states(
    connection: &mut PgConnection,
    rollup: &Active,
    project: Uuid,
    events: &[Slotted<'_>],
    changes: &mut Changes<'_, '_>,
) -> Result<(), sqlx::Error> {
    let Active { shape, statements, .. } = rollup;
    let mut touched: BTreeMap<StateKey, Vec<&Slotted<'_>>> = BTreeMap::new();
    for event in events.iter().filter(|(seen, _)| shape.takes(seen)) {
        touched.entry(shape.state_key(&event.0)).or_default().push(event);
    }
    if touched.is_empty() {
        return Ok(());
    }
    let (users, keys): (Vec<Uuid>, Vec<&str>) = touched.keys().map(|(user, key)| (*user, key.as_str())).unzip();
    let locked = sqlx::query(AssertSqlSafe(statements.lock_states.as_str())).bind(project).bind(&users).bind(&keys);
    let mut stored: HashMap<StateKey, Option<String>> = HashMap::new();
    for row in locked.fetch_all(&mut *connection).await? {
        stored.insert((row.try_get(0)?, row.try_get(1)?), row.try_get(2)?);
    }
    let mut texts = Vec::with_capacity(touched.len());
    for (key, events) in &touched {
        let before = match stored.get(key).and_then(Option::as_deref) {
            None => None,
            Some(text) => match shape.state_of_text(text) {
                Some(state) => Some(state),
                None => return Err(sqlx::Error::Decode(format!("rollup {}: {text} is no state of it", rollup.number).into())),
            },
        };
        let after = events.iter().fold(before.clone(), |state, (seen, _)| shape.fold(state, seen));
        let slot = events.first().map_or((Uuid::nil(), 0), |(_, slot)| *slot);
        if before != after {
            for (state, sign) in [(&before, -1), (&after, 1)] {
                if let Some(state) = state {
                    changes.add_contribution(project, slot, &shape.contribution_of_state(key.0, state), sign);
                }
            }
        }
        texts.push(after.map(|state| shape.state_text(&state)));
    }
    let kept = sqlx::query(AssertSqlSafe(statements.keep_states.as_str())).bind(project).bind(&users).bind(&keys);
    kept.bind(&texts).execute(connection).await?;
    Ok(())
}

/// The values of the stored keys.
type Key<'a> = Vec<Option<Datum<'a>>>;
type Group<'a> = (Uuid, Slot, Key<'a>);
/// How many rows more there are, and what the measures that are columns know of them.
type Sums = (i64, Vec<Folded>);
/// Of a group: the measure, the value, and its place where that counts.
type ValueKey = (usize, String, Option<Place>);

/// By what the groups of a rollup change.
struct Changes<'s, 'e> {
    shape: &'s Shape,
    /// Measures that are columns, and whether their place is one, too.
    columns: Vec<(usize, By, bool)>,
    values: Vec<(usize, &'s str, By)>,
    /// By project and slot, so that a key is looked up without being made anew.
    groups: HashMap<(Uuid, Slot), HashMap<Key<'e>, Sums>>,
    counts: HashMap<(Group<'e>, ValueKey), i64>,
}

impl<'s, 'e> Changes<'s, 'e> {
    fn new(shape: &'s Shape) -> Self {
        let (columns, values) = (shape.group_measures().collect(), shape.value_measures().collect());
        Changes { shape, columns, values, groups: HashMap::new(), counts: HashMap::new() }
    }

    fn add_events(&mut self, project: Uuid, events: &[Slotted<'e>]) {
        let shape = self.shape;
        let mut key = Vec::new();
        for (seen, slot) in events.iter().filter(|(seen, _)| shape.takes(seen)) {
            key.clear();
            shape.put_key(seen, &mut key);
            self.add(project, *slot, &key, |measure| shape.input(measure, seen), Some(seen.place()), 1);
        }
    }

    fn add_contribution(&mut self, project: Uuid, slot: Slot, contribution: &Contribution<'e>, sign: i64) {
        let Contribution { key, inputs, place } = contribution;
        self.add(project, slot, key, |measure| inputs[measure].clone(), *place, sign);
    }

    /// Adds to a group what a row has for each measure, or takes it away.
    fn add(
        &mut self,
        project: Uuid,
        slot: Slot,
        key: &[Option<Datum<'e>>],
        input: impl Fn(usize) -> Option<Datum<'e>>,
        place: Option<Place>,
        sign: i64,
    ) {
        for (measure, _, by) in &self.values {
            let Some(input) = input(*measure) else { continue };
            let place = place.filter(|_| matches!(by, By::First | By::Last));
            *self.counts.entry(((project, slot, key.to_vec()), (*measure, input.to_string(), place))).or_default() += sign;
        }
        let groups = self.groups.entry((project, slot)).or_default();
        let (rows, folded) = match groups.get_mut(key) {
            Some(known) => known,
            None => {
                let nothing = self.columns.iter().map(|(_, by, _)| Folded::nothing(*by)).collect();
                groups.entry(key.to_vec()).or_insert((0, nothing))
            }
        };
        *rows += sign;
        for ((measure, by, _), folded) in self.columns.iter().zip(folded) {
            if let Some(input) = input(*measure) {
                // Where a place counts there is one; what has none is kept as values.
                folded.add(*by, &input, place.unwrap_or(Place::NONE), sign);
            }
        }
    }

    /// Writes them, in the order of the tables' keys.
    async fn write(self, connection: &mut PgConnection, statements: &Statements, counts_rows: bool) -> Result<(), sqlx::Error> {
        let of_slot = |((project, slot), groups): ((Uuid, Slot), HashMap<Key<'e>, _>)| {
            groups.into_iter().map(move |(key, sums)| ((project, slot, key), sums))
        };
        let mut groups: Vec<(Group<'_>, Sums)> = self.groups.into_iter().flat_map(of_slot).collect();
        groups.retain(|(_, (rows, folded))| *rows != 0 || folded.iter().any(|folded| !folded.is_nothing()));
        groups.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
        if !groups.is_empty() {
            let mut arrays: Vec<Vec<Option<String>>> = vec![Vec::with_capacity(groups.len()); statements.group_columns];
            for ((_, _, key), (rows, folded)) in &groups {
                let rows = counts_rows.then(|| Some(rows.to_string()));
                let folded = folded.iter().zip(&self.columns).flat_map(|(folded, (.., has_place))| folded.texts(*has_place));
                let cells = key.iter().map(|value| value.as_ref().map(ToString::to_string)).chain(rows).chain(folded);
                arrays.iter_mut().zip(cells).for_each(|(array, cell)| array.push(cell));
            }
            let slots = groups.iter().map(|((project, slot, _), _)| (project, slot));
            let (projects, logs, partitions) = slot_texts(slots);
            let statement = sqlx::query(AssertSqlSafe(statements.add_groups.as_str())).bind(projects).bind(logs).bind(partitions);
            arrays.into_iter().fold(statement, |statement, array| statement.bind(array)).execute(&mut *connection).await?;
        }
        let mut counts: Vec<_> = self.counts.into_iter().filter(|(_, rows)| *rows != 0).collect();
        counts.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
        if !counts.is_empty() {
            let keys = counts.first().map_or(0, |(((_, _, key), _), _)| key.len());
            let (projects, logs, partitions) = slot_texts(counts.iter().map(|(((project, slot, _), _), _)| (project, slot)));
            let mut statement =
                sqlx::query(AssertSqlSafe(statements.add_values.as_str())).bind(projects).bind(logs).bind(partitions);
            for index in 0..keys {
                let cell = |((_, _, key), _): &(Group<'_>, ValueKey)| key[index].as_ref().map(ToString::to_string);
                statement = statement.bind(counts.iter().map(|(key, _)| cell(key)).collect::<Vec<_>>());
            }
            let names: HashMap<usize, &str> = self.values.iter().map(|(measure, name, _)| (*measure, *name)).collect();
            let name = |((_, (measure, ..)), _): &((Group<'_>, ValueKey), i64)| names.get(measure).copied().unwrap_or_default();
            statement
                .bind(counts.iter().map(name).collect::<Vec<_>>())
                .bind(counts.iter().map(|((_, (_, value, _)), _)| value.as_str()).collect::<Vec<_>>())
                .bind(counts.iter().map(|((_, (.., place)), _)| place.map(|place| place.to_string())).collect::<Vec<_>>())
                .bind(counts.iter().map(|(_, rows)| if self.shape.has_states() { *rows } else { 1 }).collect::<Vec<_>>())
                .execute(connection)
                .await?;
        }
        Ok(())
    }
}

fn slot_texts<'a>(slots: impl Iterator<Item = (&'a Uuid, &'a Slot)>) -> (Vec<String>, Vec<String>, Vec<String>) {
    let (mut projects, mut logs, mut partitions) = (Vec::new(), Vec::new(), Vec::new());
    for (project, (log, partition)) in slots {
        projects.push(project.to_string());
        logs.push(log.to_string());
        partitions.push(partition.to_string());
    }
    (projects, logs, partitions)
}
