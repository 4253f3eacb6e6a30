//! What each client is to tell of: the same users, exposures, orders and other events, and what must be stored of them.

use std::collections::BTreeMap;

use events::Micros;
use serde_json::{Map, Value, json};
use uuid::Uuid;

use crate::support::Database;

use super::world::World;

/// Users of most runs.
pub(super) const USERS: i64 = 24;
/// So many that batches fill, and a client makes more than a thousand calls.
pub(super) const USERS_MANY: i64 = 334;

/// What is told of a user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    /// Who it is; of clients that say so in an event of its own.
    Identify,
    /// It saw a variant.
    Exposure,
    /// It bought something; every third user does.
    Order,
    /// It did something else.
    Other,
}

/// One call of a client.
#[derive(Clone, Debug)]
pub(super) struct Call {
    pub(super) what: What,
    pub(super) user: String,
    pub(super) id: Uuid,
    /// Whole milliseconds: most clients cut what is finer.
    pub(super) at: Micros,
    /// The user's number.
    n: i64,
}

impl Call {
    pub(super) fn variant(&self) -> &'static str {
        if self.n % 2 == 0 { "a" } else { "b" }
    }

    /// The value of an order, which a double holds exactly.
    pub(super) fn amount(&self) -> f64 {
        self.n as f64 + 0.25
    }

    /// What the client is given beside names and values.
    pub(super) fn properties(&self) -> Map<String, Value> {
        let properties = match self.what {
            What::Identify => json!({"plan": "pro", "n": self.n}),
            What::Exposure => json!({}),
            What::Order => json!({"order_id": format!("o{}", self.n)}),
            What::Other => json!({"n": self.n, "nested": {"list": [1, "two", null, true]}, "note": "grüße 🎈"}),
        };
        properties.as_object().cloned().unwrap_or_default()
    }

    fn to_json(&self) -> Value {
        json!({
            "call": format!("{:?}", self.what).to_lowercase(),
            "user": self.user,
            "id": self.id,
            "time": self.at.to_string(),
            "millis": self.at.0 / 1_000,
            "variant": self.variant(),
            "value": self.amount(),
            "currency": "EUR",
            "properties": self.properties(),
        })
    }
}

/// The calls of one run of a client, in the order of their users.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) experiment: String,
    pub(super) calls: Vec<Call>,
    pub(super) begun: Micros,
    users: i64,
}

impl Plan {
    /// What so many users did an hour ago.
    pub(super) fn of(world: World, users: i64) -> Self {
        let experiment = format!("sdk {world}");
        let begun = Micros::now();
        let first = (begun.0 - 3_600_000_000) / 1_000 * 1_000;
        let call = |n: i64, what: What| {
            let user = format!("{experiment} {n}");
            let at = Micros(first + (n * 4 + what as i64) * 1_003_000);
            Call { what, user, id: Uuid::new_v4(), at, n }
        };
        let calls = (0..users)
            .flat_map(|n| [What::Identify, What::Exposure, What::Order, What::Other].map(|what| call(n, what)))
            .filter(|call| call.what != What::Order || call.n % 3 == 0)
            .collect();
        Plan { experiment, calls, begun, users }
    }

    /// What the names of its users begin with, and no other plan's.
    pub(super) fn prefix(&self) -> String {
        format!("{} ", self.experiment)
    }

    pub(super) fn to_json(&self) -> Value {
        json!({"experiment": self.experiment, "calls": self.calls.iter().map(Call::to_json).collect::<Vec<_>>()})
    }

    /// Users of a variant, those of them who ordered, and their orders' sum, of even users (`a`) and odd ones (`b`).
    pub(super) fn result(&self) -> [(i64, i64, f64); 2] {
        [0, 1].map(|parity| {
            let orders: Vec<i64> = (0..self.users).filter(|n| n % 2 == parity && n % 3 == 0).collect();
            (self.users / 2, orders.len() as i64, orders.iter().map(|n| *n as f64 + 0.25).sum())
        })
    }
}

/// A stored event.
#[derive(Clone, Debug)]
pub(super) struct Stored {
    pub(super) id: Uuid,
    pub(super) user_id: Uuid,
    pub(super) user: String,
    pub(super) at: Micros,
    pub(super) is_untimed: bool,
    pub(super) is_bot: bool,
    /// Its kind, and experiment and variant, or name, value and currency.
    pub(super) what: String,
    pub(super) metadata: Value,
}

/// Reads all events of all tables.
pub(super) async fn stored(database: &mut Database) -> Vec<Stored> {
    let tables = [
        (
            "impressions",
            "(SELECT concat_ws(' ', 'exposure', e.name, v.name) FROM experiments e JOIN variants v ON v.experiment_id = e.id \
             WHERE (e.project_id, e.id, v.id) = (t.project_id, t.experiment_id, t.variant_id))",
        ),
        (
            "conversions",
            "concat_ws(' ', 'conversion', conversion_type, coalesce(trim_scale(conversion_value)::text, '-'), \
             coalesce(currency, '-'))",
        ),
        ("engagement_events", "concat_ws(' ', 'engagement', event_type)"),
        ("identity_events", "concat_ws(' ', 'identity', event_type)"),
        ("campaign_events", "concat_ws(' ', 'campaign', event_type)"),
    ];
    let mut all = Vec::new();
    for (table, what) in tables {
        let query = format!(
            "SELECT id, user_id, coalesce(external_id, user_id::text), (extract(epoch FROM event_time) * 1000000)::bigint, untimed, \
             is_bot, coalesce({what}, '{table} without names'), coalesce(metadata, '{{}}')::text FROM {table} t"
        );
        type Row = (Uuid, Uuid, String, i64, bool, bool, String, String);
        for (id, user_id, user, at, is_untimed, is_bot, what, metadata) in database.rows::<Row>(&query).await {
            let metadata = serde_json::from_str(&metadata).expect("is JSON");
            all.push(Stored { id, user_id, user, at: Micros(at), is_untimed, is_bot, what, metadata });
        }
    }
    all
}

/// Returns whether an object somewhere within a value has all of these members, equal.
pub(super) fn holds(value: &Value, wanted: &Map<String, Value>) -> bool {
    match value {
        Value::Object(found) => {
            wanted.iter().all(|(key, wanted)| found.get(key) == Some(wanted)) || found.values().any(|value| holds(value, wanted))
        }
        Value::Array(found) => found.iter().any(|value| holds(value, wanted)),
        _ => false,
    }
}

/// How often each of some texts is there.
pub(super) fn counts<'a>(texts: impl Iterator<Item = (&'a str, &'a str)>) -> BTreeMap<(&'a str, &'a str), usize> {
    let mut counts = BTreeMap::new();
    for text in texts {
        *counts.entry(text).or_default() += 1;
    }
    counts
}
