//! A small HTTP client for the services, directly or behind a proxy that speaks TLS.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER};
use hyper::{Method, Request, StatusCode, Uri};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;
use service::client::{Trust, client, innermost};

/// How long a connection may take.
const CONNECT_MAX: Duration = Duration::from_secs(5);
/// How long an answer may take: the service gives up on a question long before.
const ANSWER_MAX: Duration = Duration::from_secs(120);
/// Bytes of an answer that are held in memory.
const ANSWER_BYTES_MAX: usize = 256 << 20;

/// Asks one service.
pub(crate) struct Client {
    inner: service::client::Client,
    base: String,
    authorization: Option<HeaderValue>,
}

/// What a service said.
#[derive(Debug)]
pub(crate) struct Answer {
    /// The status.
    pub(crate) status: StatusCode,
    /// The body.
    pub(crate) body: Bytes,
    /// When to ask again, if the service says.
    pub(crate) retry_after: Option<Duration>,
    /// Whether the service left rows out.
    pub(crate) is_cut: bool,
}

impl Client {
    /// Makes a client; nothing is sent yet. For https, `ca` names a file of certificates in PEM that are trusted instead of the
    /// system's.
    /// # Errors
    /// If the URL is not one, or of another scheme, the certificates cannot be read, or the token cannot stand in a header.
    pub(crate) fn new(base: &str, token: Option<&str>, ca: Option<&Path>) -> anyhow::Result<Self> {
        let base = base.trim_end_matches('/');
        let uri: Uri =
            base.parse().with_context(|| format!("{base:?} is not a URL; one such as http://127.0.0.1:8081 is accepted"))?;
        let trust = match (uri.scheme_str().filter(|_| uri.host().is_some()), ca) {
            (Some("http"), _) => Trust::Nobody,
            (Some("https"), None) => Trust::System,
            (Some("https"), Some(file)) => Trust::File(file),
            _ => bail!("{base:?}: a URL such as http://127.0.0.1:8081 or https://weir.example.com is accepted"),
        };
        let bearer = |token: &str| {
            let mut value = HeaderValue::from_str(&format!("Bearer {token}"))
                .context("the token holds characters that an HTTP header cannot hold")?;
            value.set_sensitive(true);
            anyhow::Ok(value)
        };
        let inner = client(trust, CONNECT_MAX)?;
        Ok(Client { inner, base: base.to_owned(), authorization: token.map(bearer).transpose()? })
    }

    /// Gets a page, whatever its status.
    /// # Errors
    /// If there is no answer, or it is too long.
    pub(crate) async fn get(&self, path: &str) -> anyhow::Result<Answer> {
        self.send(Method::GET, path, &[], Bytes::new(), ANSWER_MAX).await
    }

    /// Gets a page that is small and there at once, if the service is.
    /// # Errors
    /// If there is no answer within `within`.
    pub(crate) async fn probe(&self, path: &str, within: Duration) -> anyhow::Result<Answer> {
        self.send(Method::GET, path, &[], Bytes::new(), within).await
    }

    /// Asks for an answer in JSON.
    /// # Errors
    /// If there is none; else what the service says, with its code.
    pub(crate) async fn get_json(&self, path: &str) -> anyhow::Result<Value> {
        self.get(path).await?.json(&self.base)
    }

    /// Asks with a body of JSON for an answer in JSON.
    /// # Errors
    /// If there is none; else what the service says, with its code.
    pub(crate) async fn post_json(&self, path: &str, body: &Value) -> anyhow::Result<Value> {
        let headers = [(CONTENT_TYPE, HeaderValue::from_static("application/json"))];
        self.send(Method::POST, path, &headers, Bytes::from(body.to_string()), ANSWER_MAX).await?.json(&self.base)
    }

    /// Asks with a body of JSON for an answer of another media type.
    /// # Errors
    /// If there is none; else what the service says, with its code.
    pub(crate) async fn post_json_for(&self, path: &str, body: &Value, media_type: &'static str) -> anyhow::Result<Answer> {
        let json = HeaderValue::from_static("application/json");
        let headers = [(CONTENT_TYPE, json), (ACCEPT, HeaderValue::from_static(media_type))];
        let answer = self.send(Method::POST, path, &headers, Bytes::from(body.to_string()), ANSWER_MAX).await?;
        if answer.status.is_success() { Ok(answer) } else { Err(answer.failure(&self.base)) }
    }

    /// Posts a body of any kind under an authorization of its own.
    /// # Errors
    /// If there is no answer within `within`; whether the body was taken is not known then.
    pub(crate) async fn post(
        &self,
        path: &str,
        content_type: &'static str,
        authorization: &str,
        body: Bytes,
        within: Duration,
    ) -> anyhow::Result<Answer> {
        let mut authorization =
            HeaderValue::from_str(authorization).context("the key holds characters that an HTTP header cannot hold")?;
        authorization.set_sensitive(true);
        let headers = [(CONTENT_TYPE, HeaderValue::from_static(content_type)), (AUTHORIZATION, authorization)];
        self.send(Method::POST, path, &headers, body, within).await
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(HeaderName, HeaderValue)],
        body: Bytes,
        within: Duration,
    ) -> anyhow::Result<Answer> {
        let url = format!("{}{path}", self.base);
        let mut request = Request::builder().method(method).uri(&url);
        for (name, value) in headers {
            request = request.header(name, value);
        }
        if let Some(authorization) = &self.authorization
            && headers.iter().all(|(name, _)| name != AUTHORIZATION)
        {
            request = request.header(AUTHORIZATION, authorization);
        }
        let request = request.body(Full::new(body)).with_context(|| format!("{url:?}"))?;
        let answer = async {
            let response = self.inner.request(request).await.map_err(|error| anyhow!("{}", innermost(&error)))?;
            let status = response.status();
            let retry_after = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
            let is_cut = response.headers().get("x-weir-truncated").is_some_and(|value| value == "true");
            let body = match Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await {
                Ok(body) => body.to_bytes(),
                Err(error) if error.is::<LengthLimitError>() => {
                    bail!("the answer is longer than {ANSWER_BYTES_MAX} bytes; ask for less")
                }
                Err(error) => bail!("the answer broke off: {error}"),
            };
            anyhow::Ok(Answer { status, body, retry_after: retry_after.map(Duration::from_secs), is_cut })
        };
        tokio::time::timeout(within, answer)
            .await
            .unwrap_or_else(|_| bail!("no answer within {} s", within.as_secs_f64()))
            .with_context(|| self.base.clone())
    }
}

impl Answer {
    fn json(self, base: &str) -> anyhow::Result<Value> {
        if !self.status.is_success() {
            return Err(self.failure(base));
        }
        serde_json::from_slice(&self.body).with_context(|| format!("{base}: the answer is not JSON; is this the query service?"))
    }

    /// Returns what an answer says that is none.
    fn failure(&self, base: &str) -> anyhow::Error {
        let parsed: Option<Value> = serde_json::from_slice(&self.body).ok();
        let error = parsed.and_then(|answer| answer.get("error").cloned()).unwrap_or_default();
        let text = |member: &str| error.get(member).and_then(Value::as_str).map(crate::commands::printable);
        match (text("code"), text("message"), text("field")) {
            (Some(code), Some(message), Some(field)) => anyhow!("{code}: {field}: {message}"),
            (Some(code), Some(message), None) => anyhow!("{code}: {message}"),
            _ => anyhow!("{base}: {}; is this the query service?", self.status),
        }
    }

    /// Returns the body as a text of one line, 300 characters at most.
    pub(crate) fn line(&self) -> String {
        let text = String::from_utf8_lossy(&self.body);
        crate::commands::printable(text.trim()).chars().take(300).collect()
    }
}

/// Writes a name so that it is one segment of a path.
/// Source: RFC 3986 section 2.3.
pub(crate) fn segment(name: &str) -> String {
    // Dots are escaped too: a segment of dots alone would be another path.
    const ESCAPED: AsciiSet = NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'~');
    utf8_percent_encode(name, &ESCAPED).to_string()
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[test]
    fn names_become_one_segment() {
        let check = |name: &str, expected: &str| assert_eq!(segment(name), expected);
        check("checkout-v2_b~", "checkout-v2_b~");
        check("a/b?c#d e", "a%2Fb%3Fc%23d%20e");
        check("..", "%2E%2E");
        check("Prüfung", "Pr%C3%BCfung");
    }

    #[test]
    fn urls_are_checked_before_anything_is_sent() {
        let check = |base: &str, token: &str, expected: &str| {
            let found = Client::new(base, Some(token), None).err().map(|error| error.to_string()).unwrap_or_default();
            assert_eq!(found, expected);
        };
        check("http://127.0.0.1:8081/", "t", "");
        check("ftp://q", "t", r#""ftp://q": a URL such as http://127.0.0.1:8081 or https://weir.example.com is accepted"#);
        check("a b", "t", r#""a b" is not a URL; one such as http://127.0.0.1:8081 is accepted"#);
        check("http://q", "t\n", "the token holds characters that an HTTP header cannot hold");
    }

    #[test]
    fn errors_of_the_service_are_told_and_escaped() {
        let check = |status: u16, body: &str, expected: Result<Value, &str>| {
            let status = StatusCode::from_u16(status).expect("a status");
            let found = Answer { status, body: Bytes::from(body.to_owned()), retry_after: None, is_cut: false }.json("http://q");
            assert_eq!(found.map_err(|error| error.to_string()), expected.map_err(str::to_owned));
        };
        check(200, r#"{"a":1}"#, Ok(serde_json::json!({ "a": 1 })));
        check(200, "<html>", Err("http://q: the answer is not JSON; is this the query service?"));
        check(
            404,
            r#"{"error":{"code":"unknown_experiment","message":"no \u001b[2J here"}}"#,
            Err("unknown_experiment: no \\u{1b}[2J here"),
        );
        check(400, r#"{"error":{"code":"bad_value","message":"m","field":"steps"}}"#, Err("bad_value: steps: m"));
        check(502, "Bad Gateway", Err("http://q: 502 Bad Gateway; is this the query service?"));
    }

    /// Answers one request, whose body is an object, with `answer`; returns where, and the request.
    async fn serve(answer: &'static str) -> (String, tokio::task::JoinHandle<String>) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let base = format!("http://{}", listener.local_addr().expect("has one"));
        let task = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.expect("a client");
            let mut request = Vec::new();
            while !request.ends_with(b"}") {
                assert_ne!(stream.read_buf(&mut request).await.expect("a request"), 0);
            }
            stream.write_all(answer.as_bytes()).await.expect("an answer");
            String::from_utf8(request).expect("text")
        });
        (base, task)
    }

    #[tokio::test]
    async fn a_question_travels_with_its_token() {
        let (base, task) = serve("HTTP/1.1 200 OK\r\ncontent-length: 7\r\n\r\n{\"a\":1}").await;
        let client = Client::new(&base, Some("rt_1"), None).expect("a client");
        let answer = client.post_json("/v1/sql", &serde_json::json!({ "sql": "SELECT 1" })).await.expect("an answer");
        assert_eq!(answer, serde_json::json!({ "a": 1 }));
        let request = task.await.expect("served");
        assert!(request.starts_with("POST /v1/sql HTTP/1.1\r\n"), "{request}");
        assert!(request.contains("authorization: Bearer rt_1\r\n"), "{request}");
        assert!(request.ends_with(r#"{"sql":"SELECT 1"}"#), "{request}");
    }

    /// A proxy with a certificate of a private authority, as OpenSSL makes and serves it.
    #[tokio::test]
    async fn a_service_behind_tls_answers_those_who_trust_its_authority() {
        let folder = tempfile::tempdir().expect("a folder");
        let config = "[req]\ndistinguished_name=name\n[name]\n[ca]\nbasicConstraints=critical,CA:TRUE\n\
                      [leaf]\nbasicConstraints=CA:FALSE\nsubjectAltName=DNS:localhost\n";
        std::fs::write(folder.path().join("config"), config).expect("a file");
        let openssl = |args: &str| {
            let common = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"];
            let made = std::process::Command::new("openssl")
                .args(common)
                .args(["-config", "config"])
                .args(args.split(' '))
                .current_dir(folder.path())
                .output()
                .expect("openssl runs");
            assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        };
        openssl("-subj /CN=authority -extensions ca -keyout ca-key.pem -out ca.pem");
        openssl("-subj /CN=localhost -extensions leaf -keyout key.pem -out leaf.pem -CA ca.pem -CAkey ca-key.pem");
        let port = std::net::TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a port").port();
        let mut server = tokio::process::Command::new("openssl")
            .args(["s_server", "-www", "-quiet", "-cert", "leaf.pem", "-key", "key.pem", "-accept", &format!("127.0.0.1:{port}")])
            .current_dir(folder.path())
            .stdin(std::process::Stdio::null())
            .stdout(std::process::Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("openssl serves");
        while tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_err() {
            assert_eq!(server.try_wait().expect("its state"), None, "openssl has ended");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let base = format!("https://localhost:{port}");
        let ca = folder.path().join("ca.pem");
        let ask = async |ca: Option<&Path>| {
            let answer = Client::new(&base, None, ca)?.get("/").await?;
            anyhow::Ok(answer.status.as_u16())
        };
        assert_eq!(ask(Some(&ca)).await.expect("trusted"), 200);
        let refused = ask(None).await.expect_err("nobody signed it");
        assert!(format!("{refused:#}").contains("certificate"), "{refused:#}");
        let key = ask(Some(&folder.path().join("key.pem"))).await.expect_err("no certificate");
        assert!(format!("{key:#}").contains("no certificate in it"), "{key:#}");
        let missing = ask(Some(Path::new("/nowhere.pem"))).await.expect_err("no file");
        assert!(format!("{missing:#}").starts_with("--ca (WEIR_CA) /nowhere.pem: "), "{missing:#}");
    }

    #[tokio::test]
    async fn silence_and_refusal_are_told_apart() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let base = format!("http://{}", listener.local_addr().expect("has one"));
        let client = Client::new(&base, None, None).expect("a client");
        let text = |error: anyhow::Error| format!("{error:#}");
        let silent = client.probe("/readyz", Duration::from_millis(50)).await.map(|_| ()).map_err(text);
        assert_eq!(silent, Err(format!("{base}: no answer within 0.05 s")));
        drop(listener);
        let refused = client.get("/readyz").await.map(|_| ()).map_err(text).expect_err("nobody is there");
        assert!(refused.starts_with(&format!("{base}: Connection refused")), "{refused}");
    }
}
