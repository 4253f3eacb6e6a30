//! Who asks: read tokens, and the project that each of them opens.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use catalogue::keys::{KeyDigest, digest, read_tokens};
use hyper::header::{AUTHORIZATION, HeaderMap};
use sqlx::PgPool;
use uuid::Uuid;

use crate::http::error::ApiError;

/// Time between two readings at least: however many unknown tokens come, Postgres is asked no more often.
const APART_MIN: Duration = Duration::from_millis(250);

/// The tokens as they were last read from Postgres, all of them.
pub(crate) struct Tokens {
    pool: PgPool,
    age_max: Duration,
    last: Mutex<Option<Reading>>,
    /// Held while they are read: whoever waits for the same reading shares it.
    reading: tokio::sync::Mutex<()>,
}

/// A reading, and when it began.
#[derive(Clone)]
struct Reading {
    began: Instant,
    /// None: Postgres did not answer.
    projects: Option<Arc<HashMap<KeyDigest, Uuid>>>,
}

impl Tokens {
    pub(crate) fn new(pool: PgPool, age_max: Duration) -> Self {
        Tokens { pool, age_max, last: Mutex::default(), reading: tokio::sync::Mutex::default() }
    }

    /// Returns the project of a request's token. One that is not among those read is looked for in a reading that begins after this call,
    /// so that one that was just made works at once.
    /// # Errors
    /// [`ApiError::unauthorized`], the same for a token that is missing, unknown, revoked, expired or of another kind;
    /// [`ApiError::unavailable`] if Postgres cannot be asked.
    pub(crate) async fn project(&self, headers: &HeaderMap) -> Result<Uuid, ApiError> {
        let token = bearer(headers).ok_or_else(ApiError::unauthorized)?;
        let (digest, asked) = (digest(token), Instant::now());
        let known = |reading: Reading| reading.projects.and_then(|projects| projects.get(&digest).copied());
        if let Some(project) = self.last().filter(|reading| reading.began + self.age_max > asked).and_then(known) {
            return Ok(project);
        }
        let reading = self.read_since(asked).await;
        if reading.projects.is_none() {
            return Err(ApiError::unavailable("the database cannot answer now"));
        }
        known(reading).ok_or_else(ApiError::unauthorized)
    }

    /// Returns a reading that began after `asked`.
    async fn read_since(&self, asked: Instant) -> Reading {
        let _reading = self.reading.lock().await;
        if let Some(last) = self.last() {
            if last.began >= asked {
                return last;
            }
            tokio::time::sleep_until((last.began + APART_MIN).into()).await;
        }
        let began = Instant::now();
        let projects = match read_tokens(&self.pool).await {
            Ok(tokens) => Some(Arc::new(tokens.into_iter().collect())),
            Err(error) => {
                tracing::warn!(%error, "read tokens cannot be read");
                None
            }
        };
        let reading = Reading { began, projects };
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(reading.clone());
        reading
    }

    fn last(&self) -> Option<Reading> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).clone()
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
