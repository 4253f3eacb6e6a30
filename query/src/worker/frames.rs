//! What a service and its workers say to each other.
//!
//! A frame is the length of a head (32 bits, little-endian), the length of a body (the same), the head in JSON, the body. Both sides are
//! one program of one version, so nothing here is kept compatible.

use std::io;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use uuid::Uuid;

use crate::config::Limits;
use crate::http::error::ApiError;
use crate::source::snapshot::AsOf;
use crate::sql::formats::Format;

/// Bytes of a head at most: a longest SQL text, with its escapes.
const HEAD_BYTES_MAX: usize = 1024 * 1024;

/// From the service to a worker.
#[derive(Serialize, Deserialize)]
pub(super) enum ToWorker {
    /// The first frame.
    Start(Box<Start>),
    /// A question; the one before has been answered and has ended.
    Ask(Question),
    /// Nobody waits for the answer any more. Without a question that runs, nothing.
    Stop,
}

/// What a worker has to know once. It has no `Debug`, since the URL holds a password.
#[derive(Serialize, Deserialize)]
pub(super) struct Start {
    /// Postgres.
    pub(super) database_url: String,
    /// What one question may use.
    pub(super) limits: Limits,
}

/// One question.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Question {
    /// Whose rows it may read.
    pub(crate) project: Uuid,
    /// What is asked.
    pub(crate) asked: Asked,
}

/// What is asked.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Asked {
    /// A statement that the guard has let through.
    Sql {
        /// Its text.
        sql: String,
        /// How its rows are written.
        format: Format,
    },
    /// A funnel, as its request defines it.
    Funnel {
        /// The request's body.
        definition: String,
    },
}

/// From a worker to the service: [`FromWorker::Ready`], then for each question what came of it, then [`FromWorker::Ended`].
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum FromWorker {
    /// It waits for the first question.
    Ready,
    /// The answer, in the frame's body.
    Answer(Head),
    /// There is none.
    Refused {
        /// Why.
        error: ApiError,
        /// The text of a panic, if it met one.
        panic: Option<String>,
    },
    /// All that the question had begun has ended.
    Ended {
        /// Bytes that the process keeps in memory.
        resident_bytes: u64,
    },
}

/// What is known of an answer beside its body.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Head {
    /// How many rows the body holds, of a statement.
    pub(crate) rows: usize,
    /// Whether rows were cut.
    pub(crate) truncated: bool,
    /// How far the log was stored.
    pub(crate) as_of: AsOf,
}

/// Writes a frame. Not to be cancelled halfway.
/// # Errors
/// Those of the socket: the other side is gone.
pub(super) async fn write(to: &mut (impl AsyncWrite + Unpin), head: &impl Serialize, body: &[u8]) -> io::Result<()> {
    let head = serde_json::to_vec(head)?;
    let length = |bytes: &[u8]| u32::try_from(bytes.len()).map(u32::to_le_bytes).map_err(io::Error::other);
    let mut frame = [length(&head)?, length(body)?].concat();
    frame.extend_from_slice(&head);
    to.write_all(&frame).await?;
    to.write_all(body).await
}

/// Reads frames.
pub(super) struct FrameReader<R> {
    from: R,
    /// What came and was not taken yet.
    buffer: Vec<u8>,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    pub(super) fn new(from: R) -> Self {
        FrameReader { from, buffer: Vec::new() }
    }

    /// Reads the next frame's head, and returns it with the length of the body, which is to be read next. None: the other side is
    /// gone. May be cancelled.
    /// # Errors
    /// Those of the socket, and what is no frame.
    pub(super) async fn head<T: DeserializeOwned>(&mut self) -> io::Result<Option<(T, usize)>> {
        loop {
            if let Some((lengths, rest)) = self.buffer.split_first_chunk::<8>() {
                let [a, b, c, d, e, f, g, h] = *lengths;
                let head = u32::from_le_bytes([a, b, c, d]) as usize;
                let body = u32::from_le_bytes([e, f, g, h]) as usize;
                if head > HEAD_BYTES_MAX {
                    return Err(io::Error::other(format!("a frame's head of {head} bytes")));
                }
                if let Some(text) = rest.get(..head) {
                    let value = serde_json::from_slice(text)?;
                    self.buffer.drain(..8 + head);
                    return Ok(Some((value, body)));
                }
            }
            if self.from.read_buf(&mut self.buffer).await? == 0 {
                return if self.buffer.is_empty() { Ok(None) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
            }
        }
    }

    /// Reads the body of the frame whose head was read last. Not to be cancelled.
    /// # Errors
    /// Those of the socket.
    pub(super) async fn body(&mut self, length: usize) -> io::Result<Vec<u8>> {
        let mut body = Vec::with_capacity(length);
        let known = length.min(self.buffer.len());
        body.extend(self.buffer.drain(..known));
        if (&mut self.from).take((length - known) as u64).read_to_end(&mut body).await? < length - known {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(body)
    }

    /// Passes over such a body.
    /// # Errors
    /// Those of the socket.
    pub(super) async fn pass_over(&mut self, length: usize) -> io::Result<()> {
        let known = length.min(self.buffer.len());
        self.buffer.drain(..known);
        tokio::io::copy(&mut (&mut self.from).take((length - known) as u64), &mut tokio::io::sink()).await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn frames_come_whole_however_the_bytes_come() {
        let (ours, mut theirs) = tokio::io::duplex(3);
        let sending = async {
            write(&mut theirs, &"ready", &[]).await.expect("written");
            write(&mut theirs, &"answer", b"body").await.expect("written");
            write(&mut theirs, &"again", b"passed over").await.expect("written");
            write(&mut theirs, &"ended", &[]).await.expect("written");
            drop(theirs);
        };
        let reading = async {
            let mut reader = FrameReader::new(ours);
            let mut found = Vec::new();
            while let Some((head, length)) = reader.head::<String>().await.expect("a frame") {
                let body = if head == "again" {
                    reader.pass_over(length).await.expect("there");
                    Vec::new()
                } else {
                    reader.body(length).await.expect("there")
                };
                found.push((head, String::from_utf8(body).expect("text")));
            }
            found
        };
        let ((), found) = tokio::join!(sending, reading);
        let expected = [("ready", ""), ("answer", "body"), ("again", ""), ("ended", "")];
        assert_eq!(found, expected.map(|(head, body)| (head.to_owned(), body.to_owned())));
    }
}
