//! Why an event is rejected.

use std::fmt;

use serde::Serialize;

/// One reason why one event was rejected: it never entered the log; the other events of its request did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Rejection {
    /// The stable code, for programs.
    pub code: Code,
    /// The field at fault, as the client wrote it, such as `timestamp` or `properties.cart[3].price`.
    pub field: String,
    /// For people: what was found and what is accepted.
    pub message: String,
}

impl Rejection {
    /// Makes a rejection of one field.
    pub fn new(code: Code, field: impl Into<String>, message: impl Into<String>) -> Self {
        Rejection { code, field: field.into(), message: message.into() }
    }
}

impl fmt::Display for Rejection {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}: {} ({})", self.field, self.message, self.code.as_str())
    }
}

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)*) => {
        /// The closed list of reasons. Programs match on the texts: none is ever renamed.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
        pub enum Code { $($(#[$doc])* #[serde(rename = $text)] $name,)* }

        impl Code {
            /// All codes, for counters and for tests that each of them is covered.
            pub const ALL: &'static [Code] = &[$(Code::$name,)*];

            /// Returns the code's text, as answers and counters carry it.
            pub fn as_str(self) -> &'static str {
                match self { $(Code::$name => $text,)* }
            }
        }
    };
}

codes! {
    /// The event is not a JSON object, or not JSON at all.
    InvalidJson = "invalid_json",
    /// A byte sequence that is not UTF-8.
    BadUtf8 = "bad_utf8",
    /// A field has another JSON type than the one accepted.
    WrongType = "wrong_type",
    /// The same key twice in one object: signatures and filters would disagree about its value.
    DuplicateKey = "duplicate_key",
    /// The kind of event is missing or unknown.
    UnknownType = "unknown_type",
    /// A field without which the event means nothing.
    MissingField = "missing_field",
    /// Neither a user id nor an anonymous id.
    MissingUser = "missing_user",
    /// An empty text where a name or an id belongs.
    Empty = "empty",
    /// A name or an id longer than accepted; cutting it would change what it names.
    TooLong = "too_long",
    /// A value outside the accepted list or range.
    BadValue = "bad_value",
    /// Not a currency code of three letters.
    BadCurrency = "bad_currency",
    /// Money with more than 6 decimals.
    TooPrecise = "too_precise",
    /// Money of 10^14 or more.
    ValueOutOfRange = "value_out_of_range",
    /// A text that is not a time.
    BadTimestamp = "bad_timestamp",
    /// A time too long ago or too far ahead.
    TimestampOutOfRange = "timestamp_out_of_range",
    /// A time before the retention boundary: older events have been deleted.
    BeforeHorizon = "before_horizon",
    /// The character U+0000, which Postgres cannot hold.
    NulByte = "nul_byte",
    /// Half of a surrogate pair.
    BadUnicode = "bad_unicode",
    /// Objects or arrays nested too deeply.
    TooDeep = "too_deep",
    /// Too many keys in one event.
    TooManyKeys = "too_many_keys",
    /// Too many elements in one array.
    ArrayTooLong = "array_too_long",
    /// A key longer than accepted.
    KeyTooLong = "key_too_long",
    /// A text longer than accepted.
    StringTooLong = "string_too_long",
    /// A number that neither a float nor Postgres' numeric holds exactly.
    NumberOutOfRange = "number_out_of_range",
    /// The whole event is larger than accepted.
    EventTooLarge = "event_too_large",
    /// A new event name, where the project has as many as it may have.
    CardinalityLimit = "cardinality_limit",
    /// An event name that an operator blocked.
    BlockedName = "blocked_name",
}
