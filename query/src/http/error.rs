//! What a client is told when there is no answer, and what the log is told.

use std::fmt;

use hyper::StatusCode;
use serde::{Deserialize, Serialize};

/// A request without an answer. The message is public: it holds no secret and nothing of another project. It crosses from a worker to
/// the service as it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{code}: {message}")]
pub struct ApiError {
    /// The HTTP status.
    #[serde(with = "status")]
    pub status: StatusCode,
    /// The stable code, for programs.
    pub code: Code,
    /// For people: where, what was found, what is accepted.
    pub message: String,
    /// The field of the request at fault, such as `steps[1].where`.
    pub field: Option<String>,
    /// After how many seconds trying again may help.
    pub retry_after_s: Option<u32>,
}

/// The stable codes, for programs. A code's text is its name in lower case with underscores, in answers and between processes alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Code {
    /// The request cannot be understood.
    BadRequest,
    /// The SQL is refused, or means nothing.
    BadSql,
    /// The body is larger than accepted.
    BodyTooLarge,
    /// As many queries wait as may wait, or answers take all the room that there is.
    Busy,
    /// A fault of this service.
    Internal,
    /// The route exists, the method does not.
    MethodNotAllowed,
    /// The answer needs more memory than it may use.
    QueryMemory,
    /// The answer needs more time than it may use.
    QueryTimeout,
    /// The database has a schema that this build does not know.
    SchemaUnsupported,
    /// The SQL is longer or nests deeper than is planned here.
    SqlTooLarge,
    /// The token is missing or opens nothing.
    Unauthorized,
    /// What is needed for the answer is not there now.
    Unavailable,
    /// There is no such experiment.
    UnknownExperiment,
    /// The experiment has no such metric.
    UnknownMetric,
    /// There is no record of what was known then.
    UnknownRecord,
    /// There is no such route.
    UnknownRoute,
    /// The experiment has no such variant.
    UnknownVariant,
    /// The catalogue holds what this build does not know.
    UnsupportedCatalogue,
    /// The request asks for something that is defined elsewhere but not here.
    UnsupportedOption,
    /// Sums of values do not fit.
    ValueOutOfRange,
}

impl fmt::Display for Code {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(out)
    }
}

/// A status as its number.
mod status {
    use hyper::StatusCode;
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(status: &StatusCode, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u16(status.as_u16())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<StatusCode, D::Error> {
        StatusCode::from_u16(u16::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

impl ApiError {
    fn new(status: StatusCode, code: Code, message: impl Into<String>) -> Self {
        ApiError { status, code, message: message.into(), field: None, retry_after_s: None }
    }

    /// Names the field at fault.
    pub fn at(mut self, field: impl Into<String>) -> Self {
        self.field = Some(field.into());
        self
    }

    /// The request cannot be understood.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, Code::BadRequest, message)
    }

    /// The request asks for something that is defined elsewhere but not here.
    pub fn unsupported(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, Code::UnsupportedOption, message)
    }

    /// The SQL is refused, or means nothing.
    pub fn bad_sql(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, Code::BadSql, message)
    }

    /// The SQL is longer or nests deeper than is planned here.
    pub fn sql_too_large(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, Code::SqlTooLarge, message)
    }

    /// The token is missing, unknown, revoked or expired: the same answer for all, so that nothing can be found out.
    pub fn unauthorized() -> Self {
        let message = "a read token is needed: send the header `authorization: Bearer TOKEN` with one that is valid";
        Self::new(StatusCode::UNAUTHORIZED, Code::Unauthorized, message)
    }

    /// What was named is not there.
    pub fn not_found(code: Code, message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, code, message)
    }

    /// The route exists, the method does not.
    pub fn method_not_allowed(accepted: &str) -> Self {
        Self::new(StatusCode::METHOD_NOT_ALLOWED, Code::MethodNotAllowed, format!("accepted here: {accepted}"))
    }

    /// The request is larger than accepted.
    pub fn too_large(message: impl Into<String>) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, Code::BodyTooLarge, message)
    }

    /// The answer would take more than is accepted; asking for less helps, asking again does not.
    pub fn limit(code: Code, message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, code, message)
    }

    /// Nothing is wrong with the request; try again.
    pub fn unavailable(message: impl Into<String>) -> Self {
        let mut api_error = Self::new(StatusCode::SERVICE_UNAVAILABLE, Code::Unavailable, message);
        api_error.retry_after_s = Some(1);
        api_error
    }

    /// The database has a schema that this build does not know: its tables may mean something else.
    pub fn unsupported_schema(message: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, Code::SchemaUnsupported, message)
    }

    /// As many requests wait as may wait.
    pub fn busy() -> Self {
        let mut api_error = Self::unavailable("too many queries are running and waiting");
        api_error.code = Code::Busy;
        api_error
    }

    /// The time limit passed.
    pub fn timeout(seconds: f64) -> Self {
        let message = format!("the query took longer than {seconds} s and was stopped");
        Self::new(StatusCode::GATEWAY_TIMEOUT, Code::QueryTimeout, message)
    }

    /// A fault of this service; the reason is in its log.
    pub fn internal() -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, Code::Internal, "the query service failed; its log says why")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_crosses_from_a_worker_as_it_is() {
        let check = |error: ApiError, code: &str| {
            let written = serde_json::to_value(&error).expect("written");
            assert_eq!((error.code.to_string().as_str(), &written["code"]), (code, &serde_json::Value::from(code)));
            assert_eq!(serde_json::from_value::<ApiError>(written).expect("read"), error);
        };
        check(ApiError::limit(Code::ValueOutOfRange, "too much").at("steps[1].where"), "value_out_of_range");
        check(ApiError::busy(), "busy");
        check(ApiError::timeout(30.0), "query_timeout");
        check(ApiError::not_found(Code::UnknownRoute, "there is none"), "unknown_route");
    }
}
