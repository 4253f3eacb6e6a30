//! What is sent: events that depend on a seed and their number only, as a client's bytes and as the collector's draft.

use std::io::Write as _;

use events::{ClaimedTime, Context, ConversionDetails, Details, Draft, ImpressionDetails, JsonObject, Kind, Micros};
use uuid::Uuid;

/// The one experiment of the measurements. Its variant is the user's own, and never another.
const EXPERIMENT: &str = "checkout-button";
const VARIANTS: [&str; 2] = ["control", "green"];

/// Which kinds of events there are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Mix {
    /// Exposures in one experiment, and conversions that name none, so that attribution has to find it.
    Exposures {
        /// How many in 100 are conversions.
        conversions_percent: u64,
    },
    /// Engagement alone: facts from which nothing is derived.
    Engagement,
}

/// What a run sends. Two plans with the same seed send the same events, whatever connections carry them; plans with
/// different seeds share the users and no event.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Of the events' ids, users and weights.
    pub seed: u64,
    /// How many users there are.
    pub users: u64,
    /// Of which kinds.
    pub mix: Mix,
}

/// One event: what the ledger writes down of it, and what both of its forms are made from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Of a random UUID's form.
    pub id: Uuid,
    /// Of a random UUID's form.
    pub user: Uuid,
    /// What it is.
    pub kind: Kind,
    /// A number of its own, 1 to 2^40: a sum of weights betrays each event that is missing or there twice.
    pub weight: u64,
    variant: &'static str,
    product: u64,
}

impl Plan {
    /// Returns the event of a number.
    pub fn facts(&self, number: u64) -> Facts {
        let mut random = Random::new(self.seed, number);
        let id = random.uuid();
        let user = random.next() % self.users.max(1);
        let weight = (random.next() >> 24) + 1;
        let percent = random.next() % 100;
        let kind = match self.mix {
            Mix::Engagement => Kind::Engagement,
            Mix::Exposures { conversions_percent } if percent < conversions_percent => Kind::Conversion,
            Mix::Exposures { .. } => Kind::Impression,
        };
        let mut of_user = Random::new(0x7573_6572, user);
        let variant = VARIANTS[(of_user.next() % 2) as usize];
        Facts { id, user: of_user.uuid(), kind, weight, variant, product: weight % 10_000 }
    }

    /// Appends the event as a client writes it: one JSON object of about 410 bytes.
    pub fn write(&self, number: u64, timestamp: &str, out: &mut Vec<u8>) -> Facts {
        let facts = self.facts(number);
        let (mut id, mut user) = (Uuid::encode_buffer(), Uuid::encode_buffer());
        let id: &str = facts.id.hyphenated().encode_lower(&mut id);
        let user: &str = facts.user.hyphenated().encode_lower(&mut user);
        let Facts { weight, variant, product, .. } = facts;
        let mut text = |parts: &[&str]| parts.iter().for_each(|part| out.extend_from_slice(part.as_bytes()));
        text(&[r#"{"type":""#, facts.kind.as_str(), r#"","event_id":""#, id, r#"","user_id":""#, user]);
        text(&[r#"","session_id":"s-"#, &user[24..], r#"","timestamp":""#, timestamp, "\""]);
        match facts.kind {
            Kind::Impression => text(&[r#","experiment":""#, EXPERIMENT, r#"","variant":""#, variant, "\""]),
            Kind::Conversion => text(&[r#","name":"purchase","value":""#, &amount(weight), r#"","currency":"EUR""#]),
            _ => text(&[r#","name":"product_viewed""#]),
        }
        // A Vec takes every byte.
        let _ = write!(
            out,
            r#","page_url":"{PAGE}{product}","referrer":"{REFERRER}","language":"de-DE","country":"DE","device_type":"mobile","properties":{{"weight":{weight}}}}}"#
        );
        facts
    }

    /// Returns the event as the collector receives it.
    pub fn draft(&self, number: u64, at: Micros) -> Draft {
        let Facts { id, user, kind, weight, variant, product } = self.facts(number);
        let details = match kind {
            Kind::Impression => Details::Impression(ImpressionDetails::default()),
            Kind::Conversion => Details::Conversion(ConversionDetails::default()),
            _ => Details::Engagement,
        };
        let user = user.to_string();
        let only = |of: Kind, text: &str| (kind == of).then(|| text.into());
        Draft {
            event_id: Some(id.to_string().into()),
            session_id: Some(format!("s-{}", &user[24..]).into()),
            user_id: Some(user.into()),
            timestamp: ClaimedTime::Text(at.to_string().into()),
            name: only(Kind::Conversion, "purchase").or(only(Kind::Engagement, "product_viewed")),
            experiment: only(Kind::Impression, EXPERIMENT),
            variant: only(Kind::Impression, variant),
            value: only(Kind::Conversion, &amount(weight)),
            currency: only(Kind::Conversion, "EUR"),
            context: Context {
                page_url: Some(format!("{PAGE}{product}").into()),
                referrer: Some(REFERRER.into()),
                language: Some("de-DE".into()),
                country: Some("DE".into()),
                device_type: Some("mobile".into()),
                ..Context::default()
            },
            // It is an object, by what stands here.
            properties: JsonObject::parse(format!(r#"{{"weight":{weight}}}"#), "properties").ok(),
            ..Draft::new(details)
        }
    }
}

const PAGE: &str = "https://shop.example/products/";
const REFERRER: &str = "https://search.example/";

/// A weight as an amount of money: so many millionths.
fn amount(weight: u64) -> String {
    format!("{}.{:06}", weight / 1_000_000, weight % 1_000_000)
}

/// A stream of numbers from a seed and a place in it.
/// Source: Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators", the generator SplitMix64.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64, number: u64) -> Self {
        let mut place = Random(seed);
        let start = place.next();
        Random(start ^ number.wrapping_mul(0xd134_2543_de82_ef95))
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn uuid(&mut self) -> Uuid {
        let bits = u128::from(self.next()) << 64 | u128::from(self.next());
        uuid::Builder::from_random_bytes(bits.to_be_bytes()).into_uuid()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    use super::*;

    const PLAN: Plan = Plan { seed: 7, users: 100, mix: Mix::Exposures { conversions_percent: 5 } };

    #[test]
    fn every_event_is_its_own_and_the_same_each_time() {
        let mut ids = BTreeSet::new();
        let mut weights = BTreeSet::new();
        let mut users = BTreeSet::new();
        let mut conversions = 0;
        for number in 0..20_000 {
            let facts = PLAN.facts(number);
            assert_eq!(facts, PLAN.facts(number));
            ids.insert(facts.id);
            weights.insert(facts.weight);
            users.insert(facts.user);
            conversions += u32::from(facts.kind == Kind::Conversion);
        }
        assert_eq!((ids.len(), weights.len(), users.len()), (20_000, 20_000, 100));
        // 1,000 expected, standard deviation 31.
        assert!((800..1_200).contains(&conversions), "{conversions}");
        let other = Plan { seed: 8, ..PLAN };
        assert!((0..20_000).all(|number| !ids.contains(&other.facts(number).id)));
    }

    /// What is posted and what is put into a log directly are one event.
    #[test]
    fn both_forms_say_the_same() {
        for mix in [PLAN.mix, Mix::Engagement] {
            let plan = Plan { mix, ..PLAN };
            for number in 0..200 {
                let mut text = Vec::new();
                let at = Micros(1_772_366_400_123_456);
                plan.write(number, &at.to_string(), &mut text);
                assert!((380..440).contains(&text.len()), "{} bytes", text.len());
                let json: Value = serde_json::from_slice(&text).expect("valid JSON");
                let draft = plan.draft(number, at);
                let check = |member: &str, of_draft: Option<&str>| {
                    assert_eq!(json.get(member).and_then(Value::as_str), of_draft, "{member}");
                };
                check("event_id", draft.event_id.as_deref());
                check("user_id", draft.user_id.as_deref());
                check("session_id", draft.session_id.as_deref());
                check("name", draft.name.as_deref());
                check("experiment", draft.experiment.as_deref());
                check("variant", draft.variant.as_deref());
                check("value", draft.value.as_deref());
                check("currency", draft.currency.as_deref());
                check("page_url", draft.context.page_url.as_deref());
                check("referrer", draft.context.referrer.as_deref());
                check("device_type", draft.context.device_type.as_deref());
                check("type", Some(draft.details.kind().as_str()));
                assert_eq!(draft.timestamp, ClaimedTime::Text(json["timestamp"].as_str().expect("a text").into()));
                assert_eq!(draft.properties.expect("is there").get(), json["properties"].to_string());
            }
        }
    }
}
