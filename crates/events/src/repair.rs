//! What was mended in an event so that it could be kept.

/// One repair of one event. The names of the repaired fields are in the event's `metadata.repaired`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Repair {
    /// The field, by its API name where it has one, else its place in the client's event, such as `properties.cart[3].name`.
    pub field: String,
    /// Why, for counters.
    pub reason: Reason,
    /// What the client sent, where the event does not say it any more; it is kept in `metadata.repaired_from`.
    pub from: Option<String>,
}

impl Repair {
    /// Notes a repair after which the event still says what the client sent.
    pub fn new(reason: Reason, field: impl Into<String>) -> Self {
        Repair { field: field.into(), reason, from: None }
    }

    /// Notes a repair that takes a text out of the event.
    pub fn taken(reason: Reason, field: impl Into<String>, from: impl Into<String>) -> Self {
        Repair { field: field.into(), reason, from: Some(from.into()) }
    }
}

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)*) => {
        /// The closed list of repairs. None is ever renamed.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Reason { $($(#[$doc])* $name,)* }

        impl Reason {
            /// All of them, for counters.
            pub const ALL: &'static [Reason] = &[$(Reason::$name,)*];

            /// Returns the text, as counters carry it.
            pub fn as_str(self) -> &'static str {
                match self { $(Reason::$name => $text,)* }
            }
        }
    };
}

reasons! {
    /// An empty array where an object belongs: PHP writes one for an empty map.
    EmptyArray = "empty_array",
    /// A time in digits of another script, or between marks of direction.
    Digits = "digits",
    /// A text that is no time: the event is untimed.
    Timestamp = "timestamp",
    /// An amount that cannot be read without guessing: the value is unknown.
    Value = "value",
    /// A currency that is no code of three letters: currency and value are unknown.
    Currency = "currency",
    /// `NaN`, `Infinity`, `inf` or `undefined` outside a text, which JSON does not have: read as null.
    NotANumber = "not_a_number",
    /// Half of a surrogate pair in free text: replaced by U+FFFD.
    Unicode = "unicode",
    /// Bytes in free text that are not UTF-8: replaced by U+FFFD.
    Utf8 = "utf8",
    /// The character U+0000 in free text, which Postgres cannot hold: replaced by U+FFFD.
    NulByte = "nul_byte",
    /// What a program writes for a missing id, such as `undefined`: no id.
    PlaceholderId = "placeholder_id",
    /// A detail that does not say what the event is, of another type or out of its range: left out.
    Detail = "detail",
}
