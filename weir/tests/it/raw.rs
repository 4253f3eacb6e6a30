//! Kept connections on which a test sends exactly the bytes that it wants to, and learns how each exchange ended.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Longer than any answer may take.
const ANSWER_MAX: Duration = Duration::from_secs(30);

/// Why there is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Ended {
    /// Nobody listens.
    Refused,
    /// The connection was reset, or writing to it failed.
    Reset,
    /// The connection ended inside of an answer.
    Half,
    /// It ended in good order before an answer began.
    Unanswered,
    /// Neither an answer nor an end came.
    Silent,
}

/// An answer.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
}

impl Answer {
    /// A header's value, by its name in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.head.lines().filter_map(|line| line.split_once(':'));
        lines.find(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
    }

    /// Whether the connection ends with it.
    pub fn closes(&self) -> bool {
        self.header("connection") == Some("close")
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&self.body)))
    }
}

/// The address of a URL such as `http://127.0.0.1:8080`.
pub fn address(url: &str) -> SocketAddr {
    url.trim_start_matches("http://").parse().expect("an address")
}

/// A post of native events.
pub fn post(key: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!(
        "POST /v1/events HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {key}\r\nContent-Length: {length}\r\n\r\n{body}"
    )
    .into_bytes()
}

/// A connection that is kept.
pub struct Connection(TcpStream);

impl Connection {
    /// Connects.
    /// # Errors
    /// How it ended.
    pub async fn open(address: SocketAddr) -> Result<Self, Ended> {
        let stream = TcpStream::connect(address).await.map_err(|error| why(&error))?;
        let _ = stream.set_nodelay(true);
        Ok(Connection(stream))
    }

    /// Whether the other side has ended it, as a client looks before it sends again.
    pub fn is_ended(&self) -> bool {
        matches!(self.0.try_read(&mut [0; 1]), Ok(0))
    }

    /// Sends a request and reads its answer.
    /// # Errors
    /// How it ended.
    pub async fn exchange(&mut self, request: &[u8]) -> Result<Answer, Ended> {
        match tokio::time::timeout(ANSWER_MAX, self.ask(request)).await {
            Ok(answer) => answer,
            Err(_) => Err(Ended::Silent),
        }
    }

    async fn ask(&mut self, request: &[u8]) -> Result<Answer, Ended> {
        self.0.write_all(request).await.map_err(|error| why(&error))?;
        let (mut bytes, mut chunk) = (Vec::new(), [0; 16 * 1024]);
        loop {
            if let Some(answer) = whole(&bytes) {
                return Ok(answer);
            }
            match self.0.read(&mut chunk).await {
                Ok(0) if bytes.is_empty() => return Err(Ended::Unanswered),
                Ok(0) => return Err(Ended::Half),
                Ok(read) => bytes.extend_from_slice(&chunk[..read]),
                Err(error) => return Err(why(&error)),
            }
        }
    }
}

fn why(error: &std::io::Error) -> Ended {
    match error.kind() {
        ErrorKind::ConnectionRefused => Ended::Refused,
        _ => Ended::Reset,
    }
}

/// Takes an answer apart once all of it is there.
fn whole(bytes: &[u8]) -> Option<Answer> {
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n")?;
    let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let status = head.split(' ').nth(1)?.parse().ok()?;
    let mut answer = Answer { status, head, body: Vec::new() };
    let length: usize = answer.header("content-length").map_or(0, |text| text.parse().expect("a length"));
    answer.body = bytes.get(end + 4..end + 4 + length)?.to_vec();
    Some(answer)
}
