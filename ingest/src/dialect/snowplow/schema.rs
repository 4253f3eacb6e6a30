//! Self-describing JSON: `{"schema":"iglu:vendor/name/format/version","data":{..}}`.

use serde::Deserialize;
use serde_json::value::RawValue;

/// Data with the name of its schema.
#[derive(Deserialize)]
pub(super) struct Entity {
    pub(super) schema: String,
    pub(super) data: Box<RawValue>,
}

impl Entity {
    /// Returns the name in the schema, such as `link_click`; the whole text if it is no schema's.
    pub(super) fn name(&self) -> &str {
        self.schema.split('/').nth(1).unwrap_or(&self.schema)
    }

    /// Returns whether the data has a member of this name at its top.
    pub(super) fn has(&self, key: &str) -> bool {
        serde_json::from_str::<events::json::Members<'_>>(self.data.get())
            .is_ok_and(|members| members.0.iter().any(|(found, _)| found.0 == key))
    }

    fn is_object(&self) -> bool {
        self.data.get().starts_with('{')
    }
}

/// Reads the event in its envelope, which is self-describing itself.
pub(super) fn described(raw: &RawValue) -> Option<Entity> {
    let outer: Entity = serde_json::from_str(raw.get()).ok()?;
    serde_json::from_str(outer.data.get()).ok().filter(Entity::is_object)
}

/// Reads the entities beside an event; those that are none are left out.
pub(super) fn contexts(raw: &RawValue) -> Vec<Entity> {
    let Ok(outer) = serde_json::from_str::<Entity>(raw.get()) else { return Vec::new() };
    let Ok(list) = serde_json::from_str::<Vec<&RawValue>>(outer.data.get()) else { return Vec::new() };
    list.into_iter().filter_map(|raw| serde_json::from_str::<Entity>(raw.get()).ok()).filter(Entity::is_object).collect()
}
