//! Who asks: read tokens, and the project that each of them opens.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use catalogue::keys::{KeyDigest, digest, project_of_read_token};
use hyper::header::{AUTHORIZATION, HeaderMap};
use sqlx::PgPool;
use uuid::Uuid;

use crate::http::error::ApiError;

/// Tokens remembered at most, unknown ones included: guessing must not fill the memory.
const REMEMBERED_MAX: usize = 4_096;

/// The tokens seen lately.
pub(crate) struct Tokens {
    pool: PgPool,
    age_max: Duration,
    known: Mutex<HashMap<KeyDigest, Seen>>,
}

#[derive(Clone, Copy)]
struct Seen {
    project: Option<Uuid>,
    at: Instant,
}

impl Tokens {
    pub(crate) fn new(pool: PgPool, age_max: Duration) -> Self {
        Tokens { pool, age_max, known: Mutex::default() }
    }

    /// Returns the project of a request's token.
    /// # Errors
    /// [`ApiError::unauthorized`], the same for a token that is missing, unknown, revoked, expired or of another kind;
    /// [`ApiError::unavailable`] if it is not remembered and Postgres cannot be asked.
    pub(crate) async fn project(&self, headers: &HeaderMap) -> Result<Uuid, ApiError> {
        let token = bearer(headers).ok_or_else(ApiError::unauthorized)?;
        let digest = digest(token);
        if let Some(seen) = self.remembered(&digest) {
            return seen.project.ok_or_else(ApiError::unauthorized);
        }
        let project = project_of_read_token(&self.pool, &digest).await.map_err(|error| crate::engine::database_error(&error))?;
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= REMEMBERED_MAX {
            known.retain(|_, seen| seen.at.elapsed() < self.age_max);
        }
        if known.len() < REMEMBERED_MAX {
            known.insert(digest, Seen { project, at: Instant::now() });
        }
        project.ok_or_else(ApiError::unauthorized)
    }

    fn remembered(&self, digest: &KeyDigest) -> Option<Seen> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(digest).copied().filter(|seen| seen.at.elapsed() < self.age_max)
    }
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_bearer_tokens_are_read() {
        let check = |value: &'static str, expected: Option<&str>| {
            let mut headers = HeaderMap::new();
            headers.insert(AUTHORIZATION, value.parse().expect("a header"));
            assert_eq!(bearer(&headers), expected, "{value}");
        };
        check("Bearer rt_1", Some("rt_1"));
        check("bearer  rt_1 ", Some("rt_1"));
        check("Basic cnRfMTo=", None);
        check("Bearer ", None);
        check("rt_1", None);
        assert_eq!(bearer(&HeaderMap::new()), None);
    }
}
