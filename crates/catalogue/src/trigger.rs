//! What users have to do after they were exposed for an analysis to count what they do from then on.
//!
//! Many users never come to where variants differ, and only add noise. A trigger has to be something that users of all variants can do
//! alike: whether they did is tested by each answer.

use std::fmt;

use events::Kind;
use serde::{Deserialize, Serialize};

use crate::CatalogueError;
use crate::definitions::{Definition, PerUser, kind_text};
use crate::vocabulary::UnknownText;

/// The events of which a user's first one at or after the exposure begins the analysis.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Trigger {
    /// Events of this kind.
    #[serde(with = "kind_text")]
    pub kind: Kind,
    /// Those of these names; empty: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub events: Vec<String>,
    /// Those for which this condition holds, in SQL over the columns of one event.
    #[serde(default, rename = "where", skip_serializing_if = "Option::is_none")]
    pub condition: Option<String>,
}

impl Trigger {
    /// Reads one.
    /// # Errors
    /// [`CatalogueError::Invalid`], which names the place.
    pub fn parse(text: &str) -> Result<Self, CatalogueError> {
        let trigger: Trigger =
            serde_json::from_str(text).map_err(|error| CatalogueError::invalid("trigger", error.to_string()))?;
        trigger.check()?;
        Ok(trigger)
    }

    /// Checks every value but the condition, which only those can judge who compute it.
    /// # Errors
    /// [`CatalogueError::Invalid`], which names the place.
    pub fn check(&self) -> Result<(), CatalogueError> {
        self.definition().check()
    }

    /// Returns its events as those of a metric.
    pub fn definition(&self) -> Definition {
        Definition {
            description: None,
            kind: self.kind,
            events: self.events.clone(),
            condition: self.condition.clone(),
            value: None,
            per_user: PerUser::Count,
            then: Vec::new(),
            over: None,
            quantile: None,
            window: None,
            covariates: Vec::new(),
        }
    }

    /// Reads one as it is stored.
    pub(crate) fn of_text(text: &str) -> Result<Self, sqlx::Error> {
        const KNOWN: &[&str] = &["the triggers that its `weir admin experiment trigger` takes"];
        let unknown = |_| UnknownText { text: text.to_owned(), known: KNOWN };
        let source = serde_json::from_str(text).map_err(unknown);
        source.map_err(|source| sqlx::Error::ColumnDecode { index: "trigger".to_owned(), source: source.into() })
    }
}

impl fmt::Display for Trigger {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "an event of kind {}", self.kind.as_str())?;
        if !self.events.is_empty() {
            write!(out, " named {}", self.events.join(" or "))?;
        }
        self.condition.as_ref().map_or(Ok(()), |condition| write!(out, " where {condition}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn triggers_are_read_and_written_in_one_form() {
        let text = r#"{"kind":"engagement","events":["cart"],"where":"device_type = 'mobile'"}"#;
        let found = Trigger::parse(text).expect("accepted");
        assert_eq!(serde_json::to_string(&found).expect("is JSON"), text);
        assert_eq!(found.to_string(), "an event of kind engagement named cart where device_type = 'mobile'");
        let refused = |text: &str| Trigger::parse(text).expect_err(text).to_string();
        assert!(refused(r#"{"kind":"click"}"#).contains("found the kind \"click\""));
        assert!(refused(r#"{"kind":"engagement","value":"x"}"#).contains("unknown field `value`"));
        assert!(refused(r#"{"kind":"engagement","events":[" "]}"#).starts_with("events[0]: "));
    }
}
