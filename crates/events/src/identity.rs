//! Who and which: the derivation of ids. All of it is fixed for ever, since stored rows were keyed by it.

use uuid::Uuid;

use crate::event::{EventId, Kind, ProjectId, UserId};

/// The protocol a client speaks. Ids that are no UUIDs are only unique within one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dialect {
    /// `/v1/events`.
    Native,
    /// `/v1/pixel.gif`.
    Pixel,
    /// Segment's routes.
    Segment,
    /// PostHog's.
    Posthog,
    /// Snowplow's.
    Snowplow,
    /// GrowthBook's `/track`.
    Growthbook,
    /// Statsig's `/v1/log_event`.
    Statsig,
    /// Jitsu's.
    Jitsu,
}

impl Dialect {
    /// All of them.
    pub const ALL: [Dialect; 8] = [
        Dialect::Native,
        Dialect::Pixel,
        Dialect::Segment,
        Dialect::Posthog,
        Dialect::Snowplow,
        Dialect::Growthbook,
        Dialect::Statsig,
        Dialect::Jitsu,
    ];

    /// Returns whether an event is refused where it could be repaired: somebody reads the answers of `/v1/events`, and
    /// nobody those behind an SDK.
    pub fn is_strict(self) -> bool {
        self == Dialect::Native
    }

    /// Returns the dialect's name, for counters and namespaces.
    pub fn as_str(self) -> &'static str {
        match self {
            Dialect::Native => "native",
            Dialect::Pixel => "pixel",
            Dialect::Segment => "segment",
            Dialect::Posthog => "posthog",
            Dialect::Snowplow => "snowplow",
            Dialect::Growthbook => "growthbook",
            Dialect::Statsig => "statsig",
            Dialect::Jitsu => "jitsu",
        }
    }

    /// Returns the UUIDv5 namespace of the dialect's event ids: UUIDv5 of the OID namespace and `weir:event:{dialect}`.
    /// The pixel shares the native one, so that an event sent by both counts once.
    fn namespace(self) -> Uuid {
        match self {
            Dialect::Native | Dialect::Pixel => Uuid::from_u128(0xdf9194fa_a293_5e92_9a52_95a888b89abd),
            Dialect::Segment => Uuid::from_u128(0x59d9dd02_8af1_5d4b_bd67_ed8e1d1006d1),
            Dialect::Posthog => Uuid::from_u128(0xbeb52789_5642_5306_94e6_fd0bdde31c3f),
            Dialect::Snowplow => Uuid::from_u128(0x592e7a44_392e_5b1f_880e_35b250e2f9a3),
            Dialect::Growthbook => Uuid::from_u128(0x9debdac3_e585_5d37_93a9_c2c53bc27487),
            Dialect::Statsig => Uuid::from_u128(0x0a7b8403_b14a_5ea9_90b1_bd9010e68ec8),
            Dialect::Jitsu => Uuid::from_u128(0x820bcd7f_0876_5255_8662_72fabcab21d9),
        }
    }
}

/// Reads a UUID in its hyphenated form of 36 characters, any case; other texts are no UUIDs here.
pub fn hyphenated_uuid(text: &str) -> Option<Uuid> {
    if text.len() == 36 { Uuid::try_parse(text).ok() } else { None }
}

/// Returns the event id of a client's text: the UUID itself, else the UUIDv5 of its exact bytes in the dialect's namespace.
pub fn event_id(dialect: Dialect, text: &str) -> EventId {
    EventId(hyphenated_uuid(text).unwrap_or_else(|| Uuid::new_v5(&dialect.namespace(), text.as_bytes())))
}

/// Returns the user id of a client's text: the UUID itself, else UUIDv5(OID namespace, `weir:user:{project_id}:{text}`).
/// The same person has the same id in every dialect, and another one in every project.
pub fn user_id(project: ProjectId, text: &str) -> UserId {
    UserId(
        hyphenated_uuid(text).unwrap_or_else(|| {
            Uuid::new_v5(&Uuid::NAMESPACE_OID, format!("weir:user:{}:{text}", project.0.hyphenated()).as_bytes())
        }),
    )
}

/// UUIDv5 of the OID namespace and `weir:unlinked`: the namespace of users who are one event each.
const UNLINKED: Uuid = Uuid::from_u128(0x7ef2c87c_09ac_5e6b_bca7_8ff57f9a45c3);

/// Returns the user of an event that nobody may link to a person: UUIDv5 of `{project_id}:{kind}:{event_id}` in a namespace of its own. So
/// each event stands alone, and a retry of it has the same user.
pub fn unlinked_user(project: ProjectId, kind: Kind, event: EventId) -> UserId {
    let name = format!("{}:{}:{}", project.0.hyphenated(), kind.as_str(), event.0.hyphenated());
    UserId(Uuid::new_v5(&UNLINKED, name.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn namespaces_are_what_they_say() {
        for dialect in Dialect::ALL.into_iter().filter(|dialect| *dialect != Dialect::Pixel) {
            let name = format!("weir:event:{}", dialect.as_str());
            assert_eq!(dialect.namespace(), Uuid::new_v5(&Uuid::NAMESPACE_OID, name.as_bytes()), "{name}");
        }
        assert_eq!(UNLINKED, Uuid::new_v5(&Uuid::NAMESPACE_OID, b"weir:unlinked"));
    }

    #[test]
    fn uuids_stay_and_texts_become_uuid5() {
        let uuid = "6BA7B812-9dad-11d1-80b4-00c04fd430c8";
        assert_eq!(event_id(Dialect::Segment, uuid).0, Uuid::try_parse(uuid).expect("a constant"));
        assert_eq!(event_id(Dialect::Native, "msg-1").0.get_version_num(), 5);
        assert_ne!(event_id(Dialect::Native, "msg-1"), event_id(Dialect::Segment, "msg-1"));
        // 32 digits without hyphens, braces or a URN are texts like any other.
        assert_eq!(event_id(Dialect::Native, &uuid.replace('-', "")).0.get_version_num(), 5);
    }

    #[test]
    fn users_are_the_projects_own() {
        let [one, two] = [ProjectId(Uuid::from_u128(1)), ProjectId(Uuid::from_u128(2))];
        assert_ne!(user_id(one, "alice"), user_id(two, "alice"));
        let name = b"weir:user:00000000-0000-0000-0000-000000000001:alice";
        assert_eq!(user_id(one, "alice").0, Uuid::new_v5(&Uuid::NAMESPACE_OID, name));
    }

    #[test]
    fn an_unlinked_event_is_its_own_user() {
        let [one, two] = [ProjectId(Uuid::from_u128(1)), ProjectId(Uuid::from_u128(2))];
        let id = event_id(Dialect::Native, "e");
        let user = unlinked_user(one, Kind::Impression, id);
        assert_eq!(user, unlinked_user(one, Kind::Impression, id));
        let others = [
            unlinked_user(two, Kind::Impression, id),
            unlinked_user(one, Kind::Conversion, id),
            unlinked_user(one, Kind::Impression, event_id(Dialect::Native, "f")),
            user_id(one, "e"),
        ];
        assert!(!others.contains(&user));
        let name = format!("00000000-0000-0000-0000-000000000001:impression:{id}");
        assert_eq!(user.0, Uuid::new_v5(&Uuid::new_v5(&Uuid::NAMESPACE_OID, b"weir:unlinked"), name.as_bytes()));
    }
}
