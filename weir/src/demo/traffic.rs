//! Simulated users: what each of them does is a pure function of its number and of now.

use events::Micros;
use serde_json::{Value, json};
use uuid::Uuid;

/// The experiment, and the share of users who buy in each variant: the truth that the results should find.
pub(super) const EXPERIMENT: &str = "checkout_button";
pub(super) const BUYERS_CONTROL: f64 = 0.10;
pub(super) const BUYERS_B: f64 = 0.12;
/// Shares of a funnel's step who come to the next one; the last share follows from those who buy.
const SEE_PRODUCT: f64 = 0.60;
const ADD_TO_CART: f64 = 0.45;
/// The campaign that brings some of them.
const CAMPAIGN: &str = "spring_sale";
const FROM_CAMPAIGN: f64 = 0.30;
/// How far back the first visits go.
const DAYS: i64 = 14;
/// The last first visit is so long ago that all that follows it has happened.
const LAST_VISIT_AGE: i64 = 3 * Micros::HOUR;

/// Prices in cents.
const PRICES: [u64; 5] = [990, 1_990, 2_900, 4_950, 8_900];
const COUNTRIES: [&str; 6] = ["DE", "FR", "NL", "SE", "US", "JP"];
const DEVICES: [&str; 3] = ["mobile", "desktop", "tablet"];

/// A random sequence that is the same in each run.
/// Source: Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators", the generator SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Returns a number in `0..below`; the bias of the remainder is far below what a demo shows.
    fn below(&mut self, below: u64) -> u64 {
        self.next() % below
    }

    /// Returns whether something of this probability happens.
    fn happens(&mut self, probability: f64) -> bool {
        // 53 bits are what a float holds.
        ((self.next() >> 11) as f64) < probability * (1_u64 << 53) as f64
    }

    fn one_of<'a>(&mut self, all: &[&'a str]) -> &'a str {
        all[self.below(all.len() as u64) as usize]
    }
}

/// Returns all events of one user, in order, as the native route takes them. Their ids depend on the user only.
pub(super) fn events_of(user: u64, now: Micros) -> Vec<Value> {
    let mut random = Random(user.wrapping_mul(0x2545_f491_4f6c_dd1d) ^ 0x0077_6569_7221);
    let span = DAYS * Micros::DAY - LAST_VISIT_AGE;
    let mut visit = Visit {
        user,
        at: now.0 - LAST_VISIT_AGE - (random.next() % span.unsigned_abs()).cast_signed(),
        now: now.0,
        country: random.one_of(&COUNTRIES),
        device: random.one_of(&DEVICES),
        campaign: random.happens(FROM_CAMPAIGN),
        events: Vec::with_capacity(8),
    };
    let (variant, buyers) = if random.happens(0.5) { ("b", BUYERS_B) } else { ("control", BUYERS_CONTROL) };

    if visit.campaign {
        visit.add(json!({"type": "campaign_event", "name": "view", "campaign": CAMPAIGN, "component": "hero_banner"}), "/sale");
        visit.later(&mut random, 2, 30);
        visit.add(json!({"type": "campaign_event", "name": "click", "campaign": CAMPAIGN, "component": "hero_banner"}), "/sale");
    }
    visit.add(json!({"type": "engagement", "name": "page_viewed"}), "/");
    let exposure = json!({"type": "impression", "experiment": EXPERIMENT, "variant": variant});
    visit.add(exposure.clone(), "/");
    if random.happens(SEE_PRODUCT) {
        visit.later(&mut random, 5, 120);
        let price = PRICES[random.below(PRICES.len() as u64) as usize];
        visit.add(json!({"type": "engagement", "name": "product_viewed", "properties": {"price_cents": price}}), "/product");
        if random.happens(ADD_TO_CART) {
            visit.later(&mut random, 10, 600);
            visit.add(json!({"type": "engagement", "name": "added_to_cart"}), "/cart");
            if random.happens(buyers / (SEE_PRODUCT * ADD_TO_CART)) {
                visit.later(&mut random, 30, 1_800);
                let cents = price * (1 + random.below(3));
                let value = format!("{}.{:02}", cents / 100, cents % 100);
                visit.add(json!({"type": "conversion", "name": "purchase", "value": value, "currency": "EUR"}), "/thanks");
            }
        }
    }
    // Some come back and see the button again.
    if random.happens(0.2) {
        visit.at += Micros::DAY;
        visit.later(&mut random, 0, 7_200);
        visit.add(json!({"type": "engagement", "name": "page_viewed"}), "/");
        visit.add(exposure, "/");
    }
    visit.events
}

/// A user on the way.
struct Visit {
    user: u64,
    at: i64,
    now: i64,
    country: &'static str,
    device: &'static str,
    campaign: bool,
    events: Vec<Value>,
}

impl Visit {
    /// Lets time pass, in seconds.
    fn later(&mut self, random: &mut Random, least: i64, most: i64) {
        let micros = (most - least) * Micros::SECOND;
        self.at += least * Micros::SECOND + (random.next() % micros.unsigned_abs()).cast_signed();
    }

    /// Adds an event, unless it is still to come.
    fn add(&mut self, mut event: Value, page: &str) {
        if self.at > self.now {
            return;
        }
        let id = format!("weir:demo:{}:{}", self.user, self.events.len());
        event["event_id"] = Uuid::new_v5(&Uuid::NAMESPACE_OID, id.as_bytes()).to_string().into();
        event["user_id"] = format!("demo-{}", self.user).into();
        event["timestamp"] = Micros(self.at).to_string().into();
        event["page_url"] = format!("https://shop.example{page}").into();
        event["country"] = self.country.into();
        event["device_type"] = self.device.into();
        if self.campaign {
            event["utm_source"] = "newsletter".into();
            event["utm_campaign"] = CAMPAIGN.into();
        }
        self.events.push(event);
        // Two events of one user at one time would have no order.
        self.at += 1_000;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    const NOW: Micros = Micros(1_780_000_000_000_000);

    #[test]
    fn a_user_does_the_same_each_time() {
        for user in 0..50 {
            assert_eq!(events_of(user, NOW), events_of(user, NOW));
        }
        assert_ne!(events_of(1, NOW), events_of(2, NOW));
    }

    #[test]
    fn events_are_unique_in_order_and_acceptable() {
        let mut ids = HashSet::new();
        for user in 0..2_000 {
            let mut last = Micros::MIN;
            for event in events_of(user, NOW) {
                assert!(ids.insert(event["event_id"].as_str().expect("a text").to_owned()), "{event}");
                let at = Micros::parse(event["timestamp"].as_str().expect("a text")).expect("a time");
                assert!(at > last && at <= NOW, "{event}");
                assert!(NOW.0 - at.0 <= 15 * Micros::DAY, "write keys take no older ones: {event}");
                last = at;
            }
        }
    }

    #[test]
    fn the_truth_is_in_the_traffic() {
        let (mut users, mut buyers) = ([0.0; 2], [0.0; 2]);
        for user in 0..40_000 {
            let events = events_of(user, NOW);
            let variant = events.iter().find_map(|event| event["variant"].as_str()).expect("everybody is exposed");
            let arm = usize::from(variant == "b");
            users[arm] += 1.0;
            buyers[arm] += f64::from(u8::from(events.iter().any(|event| event["name"] == "purchase")));
        }
        for (arm, expected) in [BUYERS_CONTROL, BUYERS_B].into_iter().enumerate() {
            let found: f64 = buyers[arm] / users[arm];
            // Five standard errors of 20,000 users; the sequence is fixed, so this fails for a change only.
            let error = 5.0 * (expected * (1.0 - expected) / users[arm]).sqrt();
            assert!((found - expected).abs() < error, "arm {arm}: {found}, expected {expected}");
        }
        assert!((users[0] / 40_000.0 - 0.5).abs() < 0.0125, "{users:?}");
    }
}
