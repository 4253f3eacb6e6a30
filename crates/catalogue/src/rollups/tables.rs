//! Where rollups are kept, and how they are read.
//!
//! Each rollup has tables of its own, with its keys and measures as columns. Sums have the log partition in their key, so that writers never
//! meet; readers add them up. Counts and sums are added to; the least, greatest, first and last of events are kept as such. Of states,
//! which may change, the values themselves are kept, each with how many states have it: a value that none has any more is gone, and the next one
//! is the least. Distinct values are kept in the same way.

use std::fmt::Write as _;

use crate::rollups::By;
use crate::rollups::datum::Type;
use crate::rollups::shape::{NamedMeasure, Shape, States, StoredKey};

/// How a rollup is written: each text is one statement.
#[derive(Clone, Debug)]
pub struct Statements {
    /// Adds groups. Takes the project and arrays of texts: log ids, log partitions, then one for each of [`Statements::group_columns`].
    pub add_groups: String,
    /// How many arrays of texts follow log ids and log partitions.
    pub group_columns: usize,
    /// Adds values of measures. Takes the project and arrays of texts: log ids, log partitions, the keys, measures, values, places; and
    /// an array of numbers, by how many states more have it.
    pub add_values: String,
    /// Locks states, which are made where there are none, and returns user, key and what is known. Takes the project, users and keys, sorted.
    pub lock_states: String,
    /// Keeps what is known of states. Takes the project, users, keys and texts.
    pub keep_states: String,
}

/// How a rollup is read.
#[derive(Clone, Debug)]
pub struct Reading {
    /// Names and types.
    pub columns: Vec<(String, Type)>,
    /// The source of a query, with the alias `f`; it has these columns and `project_id`.
    pub from: String,
}

/// The table of a rollup, by its number.
fn name(number: i32) -> String {
    format!("rollup_{number}")
}

impl NamedMeasure {
    /// Returns whether it is a column of the groups.
    fn is_column(&self, has_states: bool) -> bool {
        match self.by {
            By::Count | By::Sum => true,
            By::Min | By::Max | By::First | By::Last => !has_states,
            By::Distinct => false,
        }
    }

    fn has_place(&self, has_states: bool) -> bool {
        !has_states && matches!(self.by, By::First | By::Last)
    }

    fn column_type(&self) -> &'static str {
        if self.by == By::Count { "bigint" } else { self.result_type().sql() }
    }
}

impl Shape {
    fn columns_of_measures(&self) -> impl Iterator<Item = &NamedMeasure> {
        self.measures.iter().filter(|measure| measure.is_column(self.has_states()))
    }

    fn has_values(&self) -> bool {
        self.measures.iter().any(|measure| !measure.is_column(self.has_states()))
    }

    /// Returns which measures are columns of the groups, in their order, and for which of them a place is kept beside.
    pub fn group_measures(&self) -> impl Iterator<Item = (usize, By, bool)> + '_ {
        let has_states = self.has_states();
        let columns = self.measures.iter().enumerate().filter(move |(_, measure)| measure.is_column(has_states));
        columns.map(move |(index, measure)| (index, measure.by, measure.has_place(has_states)))
    }

    /// Returns which measures are kept as values, with their names.
    pub fn value_measures(&self) -> impl Iterator<Item = (usize, &str, By)> + '_ {
        let has_states = self.has_states();
        let values = self.measures.iter().enumerate().filter(move |(_, measure)| !measure.is_column(has_states));
        values.map(|(index, measure)| (index, measure.name.as_str(), measure.by))
    }

    /// Returns what makes the tables of a rollup.
    pub(super) fn create(&self, number: i32) -> String {
        let name = name(number);
        let keys: String = self.keys.iter().map(|key| format!("\"{}\" {}, ", key.name, key.value_type.sql())).collect();
        let key_names = key_names(&self.keys);
        let mut sql =
            format!("CREATE TABLE {name} (project_id uuid NOT NULL, {keys}log_id uuid NOT NULL, log_partition integer NOT NULL");
        sql.push_str(", row_count bigint NOT NULL");
        for measure in self.columns_of_measures() {
            let required = if matches!(measure.by, By::Count | By::Sum) { " NOT NULL" } else { "" };
            // Writing to a String does not fail.
            let _ = write!(sql, ", \"{}\" {}{required}", measure.name, measure.column_type());
            if measure.has_place(self.has_states()) {
                let _ = write!(sql, ", \"{}_place\" bytea", measure.name);
            }
        }
        let _ = write!(sql, ", UNIQUE NULLS NOT DISTINCT (project_id, {key_names}log_id, log_partition)); ");
        if self.has_values() {
            let _ = write!(
                sql,
                "CREATE TABLE {name}_values (project_id uuid NOT NULL, {keys}log_id uuid NOT NULL, log_partition integer NOT NULL,
                     measure text NOT NULL, value_text text NOT NULL, place bytea, row_count bigint NOT NULL,
                     UNIQUE NULLS NOT DISTINCT (project_id, {key_names}log_id, log_partition, measure, value_text, place)); "
            );
        }
        if self.has_states() {
            let _ = write!(
                sql,
                "CREATE TABLE {name}_states (project_id uuid NOT NULL, user_id uuid NOT NULL, key text NOT NULL, cells jsonb,
                     PRIMARY KEY (project_id, user_id, key)) WITH (fillfactor = 70); "
            );
        }
        sql
    }

    /// Returns what removes them.
    pub(super) fn drop(&self, number: i32) -> String {
        let name = name(number);
        format!("DROP TABLE IF EXISTS {name}, {name}_values, {name}_states")
    }

    /// Returns how a rollup is written.
    pub fn statements(&self, number: i32) -> Statements {
        self.statements_of(&name(number), true)
    }

    /// Returns how the table of this name is written. `counts_rows`: it has a column that counts what was added.
    pub fn statements_of(&self, name: &str, counts_rows: bool) -> Statements {
        let key_names = key_names(&self.keys);
        // Types by which texts are read.
        let mut columns: Vec<(String, &'static str)> =
            self.keys.iter().map(|key| (format!("\"{}\"", key.name), key.value_type.sql())).collect();
        let mut updates = Vec::new();
        if counts_rows {
            columns.push(("row_count".to_owned(), "bigint"));
            updates.push("row_count = r.row_count + excluded.row_count".to_owned());
        }
        for measure in self.columns_of_measures() {
            let column = format!("\"{}\"", measure.name);
            let place = format!("\"{}_place\"", measure.name);
            columns.push((column.clone(), measure.column_type()));
            let best = |comparison: &str| {
                let is_better = format!("r.{place} IS NULL OR excluded.{place} {comparison} r.{place}");
                let chosen = |of: &str| format!("{of} = CASE WHEN {is_better} THEN excluded.{of} ELSE r.{of} END");
                vec![chosen(&column), chosen(&place)]
            };
            updates.extend(match measure.by {
                By::Count | By::Sum => vec![format!("{column} = r.{column} + excluded.{column}")],
                By::Min => vec![format!("{column} = least(r.{column}, excluded.{column})")],
                By::Max => vec![format!("{column} = greatest(r.{column}, excluded.{column})")],
                By::First => best("<"),
                By::Last | By::Distinct => best(">"),
            });
            if measure.has_place(self.has_states()) {
                columns.push((place, "bytea"));
            }
        }
        let names: Vec<&str> = columns.iter().map(|(name, _)| name.as_str()).collect();
        let read: Vec<String> =
            columns.iter().enumerate().map(|(index, (_, of))| format!("n.c{index}::{}", read_as(of))).collect();
        let arrays: Vec<String> = (0..columns.len()).map(|index| format!("${}::text[]", index + 4)).collect();
        let taken: Vec<String> = (0..columns.len()).map(|index| format!("c{index}")).collect();
        let add_groups = format!(
            "INSERT INTO {name} AS r (project_id, log_id, log_partition, {})
             SELECT n.project_id::uuid, n.log_id::uuid, n.log_partition::integer, {}
             FROM unnest($1::text[], $2::text[], $3::text[], {}) AS n (project_id, log_id, log_partition, {})
             ON CONFLICT (project_id, {key_names}log_id, log_partition) DO UPDATE SET {}",
            names.join(", "),
            read.join(", "),
            arrays.join(", "),
            taken.join(", "),
            updates.join(", ")
        );
        let keys = self.keys.len();
        let key_read: String =
            self.keys.iter().enumerate().map(|(index, key)| format!("n.c{index}::{}, ", key.value_type.sql())).collect();
        let key_arrays: String = (0..keys).map(|index| format!("${}::text[], ", index + 4)).collect();
        let key_taken: String = (0..keys).map(|index| format!("c{index}, ")).collect();
        let rest: Vec<String> = (0..4).map(|index| format!("${}", keys + 4 + index)).collect();
        // Of events a value is there or not; of states it is counted, so that it can go.
        let conflict =
            if self.has_states() { "DO UPDATE SET row_count = r.row_count + excluded.row_count" } else { "DO NOTHING" };
        let add_values = format!(
            "INSERT INTO {name}_values AS r (project_id, log_id, log_partition, {key_names}measure, value_text, place, row_count)
             SELECT n.project_id::uuid, n.log_id::uuid, n.log_partition::integer, {key_read}n.measure, n.value_text, n.place::bytea, n.row_count
             FROM unnest($1::text[], $2::text[], $3::text[], {key_arrays}{}::text[], {}::text[], {}::text[], {}::bigint[])
                  AS n (project_id, log_id, log_partition, {key_taken}measure, value_text, place, row_count)
             ON CONFLICT (project_id, {key_names}log_id, log_partition, measure, value_text, place) {conflict}",
            rest[0], rest[1], rest[2], rest[3]
        );
        let lock_states = format!(
            "INSERT INTO {name}_states AS s (project_id, user_id, key)
             SELECT $1, n.user_id, n.key FROM unnest($2::uuid[], $3::text[]) WITH ORDINALITY AS n (user_id, key, number) ORDER BY n.number
             ON CONFLICT (project_id, user_id, key) DO UPDATE SET key = excluded.key
             RETURNING user_id, key, cells::text"
        );
        let keep_states = format!(
            "INSERT INTO {name}_states (project_id, user_id, key, cells)
             SELECT $1, n.user_id, n.key, n.cells::jsonb
             FROM unnest($2::uuid[], $3::text[], $4::text[]) WITH ORDINALITY AS n (user_id, key, cells, number) ORDER BY n.number
             ON CONFLICT (project_id, user_id, key) DO UPDATE SET cells = excluded.cells"
        );
        Statements { add_groups, group_columns: columns.len(), add_values, lock_states, keep_states }
    }

    /// Returns how a rollup is read: one row per group, over all log partitions.
    pub fn reading(&self, number: i32) -> Reading {
        let name = name(number);
        let shown = self
            .keys
            .iter()
            .filter(|key| key.is_shown)
            .map(|key| (key.name.clone(), key.value_type, format!("r.\"{}\"", key.name)));
        let looked_up = self.looked_up.iter().map(|key| (key.name.clone(), key.value_type, format!("c.\"{}\"", key.column)));
        let keys: Vec<(String, Type, String)> = shown.chain(looked_up).collect();
        let join = match self.looked_up.first() {
            Some(first) => format!(" LEFT JOIN campaigns c ON c.project_id = r.project_id AND c.id = r.\"{}\"", first.by),
            None => String::new(),
        };
        let key_values: String = keys.iter().map(|(name, _, of)| format!("{of} AS \"{name}\", ")).collect();
        let key_names: String = keys.iter().map(|(name, ..)| format!("\"{name}\", ")).collect();
        let (mut of_groups, mut of_values, mut totals) = (String::new(), String::new(), String::new());
        for measure in self.columns_of_measures() {
            let column = format!("\"{}\"", measure.name);
            let place = measure.has_place(self.has_states()).then(|| format!("\"{}_place\"", measure.name));
            for (column, of) in [(Some(column.clone()), measure.column_type()), (place.clone(), "bytea")] {
                if let Some(column) = column {
                    let _ = write!(of_groups, ", r.{column}");
                    let _ = write!(of_values, ", NULL::{of} AS {column}");
                }
            }
            let order = if measure.by == By::First { "" } else { " DESC" };
            let _ = match (measure.by, place) {
                (By::Count, _) => write!(totals, ", coalesce(sum({column}), 0)::bigint AS {column}"),
                (By::Min, _) => write!(totals, ", min({column}) AS {column}"),
                (By::Max, _) => write!(totals, ", max({column}) AS {column}"),
                (_, Some(place)) => write!(
                    totals,
                    ", (array_agg({column} ORDER BY {place}{order}) FILTER (WHERE {place} IS NOT NULL))[1] AS {column}"
                ),
                (_, None) => write!(totals, ", coalesce(sum({column}), 0) AS {column}"),
            };
        }
        for (_, measure, by) in self.value_measures() {
            let is_of = format!("FILTER (WHERE measure = '{measure}')");
            let value_type =
                self.measures.iter().find(|known| known.name == measure).map_or("text", |known| known.value_type.sql());
            let _ = match by {
                By::Min | By::Max => write!(totals, ", {}(value_text::{value_type}) {is_of} AS \"{measure}\"", by.as_str()),
                By::First => {
                    write!(totals, ", ((array_agg(value_text ORDER BY place) {is_of})[1])::{value_type} AS \"{measure}\"")
                }
                By::Last => {
                    write!(totals, ", ((array_agg(value_text ORDER BY place DESC) {is_of})[1])::{value_type} AS \"{measure}\"")
                }
                _ => write!(totals, ", count(*) {is_of} AS \"{measure}\""),
            };
        }
        let mut rows = format!(
            "SELECT r.project_id, {key_values}r.row_count{of_groups}, NULL::text AS measure, NULL::text AS value_text, NULL::bytea AS place
             FROM {name} r{join}"
        );
        if self.has_values() {
            let _ = write!(
                rows,
                " UNION ALL SELECT project_id, {key_names}0{of_values}, measure, value_text, place FROM (
                      SELECT r.project_id, {key_values}r.measure, r.value_text, r.place, r.row_count FROM {name}_values r{join}) r
                  GROUP BY project_id, {key_names}measure, value_text, place HAVING sum(row_count) > 0"
            );
        }
        let from = format!(
            "(SELECT project_id, {}{} FROM ({rows}) a GROUP BY project_id{} HAVING sum(row_count) > 0) f",
            key_names,
            totals.trim_start_matches(", "),
            keys.iter().map(|(name, ..)| format!(", \"{name}\"")).collect::<String>(),
        );
        let measures =
            self.columns_of_measures().map(|measure| measure.name.as_str()).chain(self.value_measures().map(|(_, name, _)| name));
        let of_measure = |name: &str| {
            self.measures.iter().find(|measure| measure.name == name).map_or(Type::Number, NamedMeasure::result_type)
        };
        let mut columns: Vec<(String, Type)> = keys.into_iter().map(|(name, value_type, _)| (name, value_type)).collect();
        columns.extend(measures.map(|name| (name.to_owned(), of_measure(name))));
        Reading { columns, from }
    }

    /// Returns how the states are read of a rollup that folds events: one row per user and key.
    pub fn reading_states(&self, number: i32) -> Option<Reading> {
        let Some(States::Per { keys, measures }) = &self.states else { return None };
        let mut columns = vec![("user_id".to_owned(), Type::Uuid)];
        let mut expressions = String::new();
        let cells = keys.iter().enumerate().map(|(index, key)| (index, &key.name, key.value_type));
        let folded =
            measures.iter().enumerate().map(|(index, measure)| (keys.len() + 2 * index, &measure.name, measure.result_type()));
        for (index, name, value_type) in cells.chain(folded) {
            let _ = write!(expressions, ", (s.cells ->> {index})::{} AS \"{name}\"", value_type.sql());
            columns.push((name.clone(), value_type));
        }
        let from =
            format!("(SELECT s.project_id, s.user_id{expressions} FROM {}_states s WHERE s.cells IS NOT NULL) f", name(number));
        Some(Reading { columns, from })
    }
}

/// Returns the type that a text is read as for a column: all sums are written with 6 digits after the point, as the amounts of events are.
fn read_as(column_type: &'static str) -> &'static str {
    if column_type == Type::Number.sql() { "numeric(44, 6)" } else { column_type }
}

/// Names for a list that something follows.
fn key_names(keys: &[StoredKey]) -> String {
    keys.iter().map(|key| format!("\"{}\", ", key.name)).collect()
}
