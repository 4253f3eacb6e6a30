//! How an experiment decides, and what follows of what it shows.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::vocabulary::UnknownText;
use crate::{CatalogueError, check};

/// Conditions of one experiment, at most: each is computed with each answer.
const RULES_MAX: usize = 20;

/// How an experiment decides, and what follows of what it shows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    /// When a variant is shipped or rolled back.
    #[serde(default)]
    pub decide_by: DecideBy,
    /// What follows where a guardrail is harmed.
    #[serde(default)]
    pub on_harm: OnHarm,
    /// Conditions by name, in SQL over the columns of one comparison: somebody is told when one begins to hold.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub rules: BTreeMap<String, String>,
}

/// When a variant is shipped or rolled back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DecideBy {
    /// Ship what wins all goals, roll back what loses one and wins none.
    #[default]
    ClearSignals,
    /// Ship what is not shown to lose: where shipping costs little.
    DoNoHarm,
    /// Ship what wins a goal and is shown to be safe in all guardrails.
    RiskAware,
}

impl DecideBy {
    /// Returns the text, as it is written.
    pub fn as_str(self) -> &'static str {
        match self {
            DecideBy::ClearSignals => "clear_signals",
            DecideBy::DoNoHarm => "do_no_harm",
            DecideBy::RiskAware => "risk_aware",
        }
    }
}

/// What follows where a guardrail is harmed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnHarm {
    /// Somebody is told.
    #[default]
    Tell,
    /// The experiment is stopped, too: exposures count no longer. Which variant users get is up to who assigns them.
    Stop,
}

impl Policy {
    /// Reads one.
    /// # Errors
    /// [`CatalogueError::Invalid`], which names the place.
    pub fn parse(text: &str) -> Result<Self, CatalogueError> {
        let policy: Policy = serde_json::from_str(text).map_err(|error| CatalogueError::invalid("policy", error.to_string()))?;
        policy.check()?;
        Ok(policy)
    }

    /// Checks every value but the conditions, which only those can judge who compute them.
    /// # Errors
    /// [`CatalogueError::Invalid`], which names the place.
    pub fn check(&self) -> Result<(), CatalogueError> {
        if self.rules.len() > RULES_MAX {
            let message = format!("found {}; at most {RULES_MAX} are accepted", self.rules.len());
            return Err(CatalogueError::invalid("rules", message));
        }
        for (name, condition) in &self.rules {
            check::name("rules", name)?;
            check::something(&format!("rules[{name}]"), condition)?;
        }
        Ok(())
    }

    /// Returns whether it is the one of experiments that have none of their own.
    pub fn is_usual(&self) -> bool {
        *self == Policy::default()
    }

    /// Reads one as it is stored.
    pub(crate) fn of_text(text: &str) -> Result<Self, sqlx::Error> {
        const KNOWN: &[&str] = &["the policies that its `weir admin experiment policy` takes"];
        let unknown = |_| UnknownText { text: text.to_owned(), known: KNOWN };
        let source = serde_json::from_str(text).map_err(unknown);
        source.map_err(|source| sqlx::Error::ColumnDecode { index: "policy".to_owned(), source: source.into() })
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "decides by {}", self.decide_by.as_str().replace('_', " "))?;
        if self.on_harm == OnHarm::Stop {
            out.write_str(", stops on harm")?;
        }
        for (name, condition) in &self.rules {
            write!(out, ", tells of {name}: {condition}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_are_read_and_what_is_wrong_is_named() {
        let found =
            Policy::parse(r#"{"decide_by": "risk_aware", "on_harm": "stop", "rules": {"big": "lift > 0.1"}}"#).expect("accepted");
        assert_eq!(found.to_string(), "decides by risk aware, stops on harm, tells of big: lift > 0.1");
        assert_eq!(Policy::of_text(&serde_json::to_string(&found).expect("is JSON")).expect("known"), found);
        assert!(Policy::parse("{}").expect("accepted").is_usual() && !found.is_usual());
        let check = |text: &str, part: &str| {
            let error = Policy::parse(text).expect_err(text).to_string();
            assert!(error.contains(part), "{text}: {error}");
        };
        check(r#"{"decide_by": "hope"}"#, "unknown variant `hope`, expected one of `clear_signals`, `do_no_harm`");
        check(r#"{"on_win": "ship"}"#, "unknown field `on_win`");
        check(r#"{"rules": {"": "lift > 0"}}"#, "rules");
        check(r#"{"rules": {"a": " "}}"#, "rules[a]");
        let many: BTreeMap<String, &str> = (0..21).map(|n| (format!("r{n}"), "true")).collect();
        check(&serde_json::json!({ "rules": many }).to_string(), "rules: found 21; at most 20");
    }
}
