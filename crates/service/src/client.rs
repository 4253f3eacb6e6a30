//! A client for HTTP and HTTPS, over one implementation of TLS.

use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::{self, PemObject};
use rustls::{ClientConfig, RootCertStore};

/// Sends requests whose bodies are in memory.
pub type Client = legacy::Client<HttpsConnector<HttpConnector>, Full<Bytes>>;

/// Whose certificates are believed.
#[derive(Clone, Copy, Debug)]
pub enum Trust<'a> {
    /// Nobody's: for addresses without TLS.
    Nobody,
    /// Those that the system trusts.
    System,
    /// Those of a file in PEM, and no others.
    File(&'a Path),
}

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The system trusts nobody.
    #[error("the system has no trusted certificates; install ca-certificates, or name a file of them with --ca")]
    NoneOfSystem,
    /// The file cannot be read, or holds what is none.
    #[error("--ca (WEIR_CA) {file}: {source}", file = file.display())]
    File {
        /// Its path.
        file: PathBuf,
        /// What is wrong.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The file holds none.
    #[error("--ca (WEIR_CA) {}: no certificate in it; those in PEM are accepted", .0.display())]
    Empty(PathBuf),
    /// A fault of this build.
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
}

/// Makes a client; nothing is sent yet. A connection may take so long to be made.
/// # Errors
/// [`ClientError`].
pub fn client(trust: Trust<'_>, connect_max: Duration) -> Result<Client, ClientError> {
    let roots = match trust {
        Trust::Nobody => RootCertStore::empty(),
        Trust::System => of_system()?,
        Trust::File(file) => of_file(file)?,
    };
    let mut connector = HttpConnector::new();
    connector.set_connect_timeout(Some(connect_max));
    connector.set_nodelay(true);
    connector.enforce_http(false);
    let tls = ClientConfig::builder_with_provider(rustls::crypto::ring::default_provider().into())
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let connector = HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_http1().wrap_connector(connector);
    Ok(legacy::Client::builder(TokioExecutor::new()).build(connector))
}

fn of_system() -> Result<RootCertStore, ClientError> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() { Err(ClientError::NoneOfSystem) } else { Ok(roots) }
}

fn of_file(file: &Path) -> Result<RootCertStore, ClientError> {
    let mut roots = RootCertStore::empty();
    let unreadable = |source: pem::Error| ClientError::File { file: file.to_owned(), source: source.into() };
    for certificate in CertificateDer::pem_file_iter(file).map_err(unreadable)? {
        let added = roots.add(certificate.map_err(unreadable)?);
        added.map_err(|source| ClientError::File { file: file.to_owned(), source: source.into() })?;
    }
    if roots.is_empty() { Err(ClientError::Empty(file.to_owned())) } else { Ok(roots) }
}

/// Returns the reason below the layers of a client's error: connection refused, no such name.
pub fn innermost<'a>(error: &'a (dyn std::error::Error + 'static)) -> &'a (dyn std::error::Error + 'static) {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost
}
