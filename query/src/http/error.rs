//! What a client is told when there is no answer, and what the log is told.

use hyper::StatusCode;
use serde::{Deserialize, Serialize};

/// A request without an answer. The message is public: it holds no secret and nothing of another project.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{code}: {message}")]
pub struct ApiError {
    /// The HTTP status.
    pub status: StatusCode,
    /// The stable code, for programs.
    pub code: &'static str,
    /// For people: where, what was found, what is accepted.
    pub message: String,
    /// The field of the request at fault, such as `steps[1].where`.
    pub field: Option<String>,
    /// After how many seconds trying again may help.
    pub retry_after_s: Option<u32>,
}

impl ApiError {
    fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        ApiError { status, code, message: message.into(), field: None, retry_after_s: None }
    }

    /// Names the field at fault.
    pub fn at(mut self, field: impl Into<String>) -> Self {
        self.field = Some(field.into());
        self
    }

    /// The request cannot be understood.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "bad_request", message)
    }

    /// The request asks for something that is defined elsewhere but not here.
    pub fn unsupported(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "unsupported_option", message)
    }

    /// The SQL is refused, or means nothing.
    pub fn bad_sql(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "bad_sql", message)
    }

    /// The SQL is longer or nests deeper than is planned here.
    pub fn sql_too_large(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "sql_too_large", message)
    }

    /// The token is missing, unknown, revoked or expired: the same answer for all, so that nothing can be found out.
    pub fn unauthorized() -> Self {
        let message = "a read token is needed: send the header `authorization: Bearer TOKEN` with one that is valid";
        Self::new(StatusCode::UNAUTHORIZED, "unauthorized", message)
    }

    /// What was named is not there.
    pub fn not_found(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, code, message)
    }

    /// The route exists, the method does not.
    pub fn method_not_allowed(accepted: &str) -> Self {
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", format!("accepted here: {accepted}"))
    }

    /// The request is larger than accepted.
    pub fn too_large(message: impl Into<String>) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", message)
    }

    /// The answer would take more than is accepted; asking for less helps, asking again does not.
    pub fn limit(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, code, message)
    }

    /// Nothing is wrong with the request; try again.
    pub fn unavailable(message: impl Into<String>) -> Self {
        let mut api_error = Self::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", message);
        api_error.retry_after_s = Some(1);
        api_error
    }

    /// The database has a schema that this build does not know: its tables may mean something else.
    pub fn unsupported_schema(message: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "schema_unsupported", message)
    }

    /// As many requests wait as may wait.
    pub fn busy() -> Self {
        let mut api_error = Self::unavailable("too many queries are running and waiting");
        api_error.code = "busy";
        api_error
    }

    /// The time limit passed.
    pub fn timeout(seconds: f64) -> Self {
        let message = format!("the query took longer than {seconds} s and was stopped");
        Self::new(StatusCode::GATEWAY_TIMEOUT, "query_timeout", message)
    }

    /// A fault of this service; the reason is in its log.
    pub fn internal() -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "the query service failed; its log says why")
    }
}

/// An [`ApiError`] as one process tells it another.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Written {
    status: u16,
    code: String,
    message: String,
    field: Option<String>,
    retry_after_s: Option<u32>,
}

/// The codes that questions are refused by in a worker.
const CODES_OF_WORKERS: [&str; 12] = [
    "bad_request",
    "bad_sql",
    "internal",
    "query_memory",
    "query_timeout",
    "schema_unsupported",
    "sql_too_large",
    "unavailable",
    "unknown_experiment",
    "unknown_variant",
    "unsupported_catalogue",
    "unsupported_option",
];

impl From<&ApiError> for Written {
    fn from(error: &ApiError) -> Self {
        let ApiError { status, code, message, field, retry_after_s } = error.clone();
        Written { status: status.as_u16(), code: code.to_owned(), message, field, retry_after_s }
    }
}

impl From<Written> for ApiError {
    fn from(written: Written) -> Self {
        let Written { status, code, message, field, retry_after_s } = written;
        let known = CODES_OF_WORKERS.into_iter().find(|known| *known == code);
        match (StatusCode::from_u16(status), known) {
            (Ok(status), Some(code)) => ApiError { status, code, message, field, retry_after_s },
            _ => {
                tracing::error!(code, message, "a worker refused a question by a code that is not known");
                ApiError::internal()
            }
        }
    }
}
