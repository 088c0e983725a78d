//! Whether a port of a guest is a web server: it is asked for the head of its first page.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::client::danger::{
    HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier,
};
use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::rustls::{
    ClientConfig, DigitallySignedStruct, Error as TlsError, SignatureScheme,
};

use crate::guest::Guest;

/// How long each of two questions may take.
const ANSWER_MAX: Duration = Duration::from_secs(2);
/// How much of an answer tells what it is: `HTTP/1.1 400`.
const STATUS_LINE: usize = 12;

/// What a web server speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Web {
    /// HTTP.
    Http,
    /// HTTP over TLS.
    Https,
}

/// Asks `target`, an address in the guest, as a browser that wants a page of `host` would.
pub(super) async fn probe(guest: &Guest, target: &str, host: &str) -> Option<Web> {
    let plain = timeout(ANSWER_MAX, ask_plain(guest, target, host)).await;
    match verdict(&plain.ok()?.ok()?) {
        Verdict::Http => Some(Web::Http),
        Verdict::Other => None,
        verdict => {
            let secure = timeout(ANSWER_MAX, ask_secure(guest, target, host)).await;
            match secure.ok().and_then(Result::ok).as_deref().map(is_http) {
                Some(true) => Some(Web::Https),
                _ => (verdict == Verdict::HttpOrHttps).then_some(Web::Http),
            }
        }
    }
}

/// What a plain question's answer tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Http,
    /// It complains in HTTP: maybe of what was not secure.
    HttpOrHttps,
    /// It says nothing, or complains in TLS.
    MaybeHttps,
    /// It speaks something else.
    Other,
}

fn verdict(answer: &[u8]) -> Verdict {
    // An alert's record (RFC 8446, section 5.1).
    let is_alert = answer.starts_with(&[21, 3]);
    match (answer.is_empty() || is_alert, is_http(answer)) {
        (true, _) => Verdict::MaybeHttps,
        (false, false) => Verdict::Other,
        (false, true) if answer.ends_with(b" 400") => Verdict::HttpOrHttps,
        (false, true) => Verdict::Http,
    }
}

fn is_http(answer: &[u8]) -> bool {
    answer.starts_with(b"HTTP/")
}

async fn ask_plain(guest: &Guest, target: &str, host: &str) -> io::Result<Vec<u8>> {
    ask(guest.tcp(target).await?, host).await
}

async fn ask_secure(guest: &Guest, target: &str, host: &str) -> io::Result<Vec<u8>> {
    let stream = guest.tcp(target).await?;
    let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
    let stream = connector().connect(name, stream).await?;
    ask(stream, host).await
}

/// The first bytes of the answer.
async fn ask(mut stream: impl AsyncRead + AsyncWrite + Unpin, host: &str) -> io::Result<Vec<u8>> {
    let question = format!(
        "HEAD / HTTP/1.1\r\nHost: {host}\r\nUser-Agent: banger/{}\r\nConnection: close\r\n\r\n",
        banger_proto::VERSION
    );
    stream.write_all(question.as_bytes()).await?;
    stream.flush().await?;
    let mut answer = Vec::new();
    let mut head = stream.take(STATUS_LINE as u64);
    match head.read_to_end(&mut answer).await {
        // Some hang up rudely, behind an alert too.
        Ok(_) | Err(_) => Ok(answer),
    }
}

fn connector() -> TlsConnector {
    let provider = Arc::new(ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .expect("the provider has the suites of both versions")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    TlsConnector::from(Arc::new(config))
}

/// Takes any certificate: nothing is told to the server, and nothing it says is believed but
/// that it speaks TLS. Whether to trust it is for the browser.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_tells_what_speaks() {
        for (answer, told) in [
            (&b"HTTP/1.1 200"[..], Verdict::Http),
            (b"HTTP/1.1 400", Verdict::HttpOrHttps),
            (b"HTTP/1.0 400", Verdict::HttpOrHttps),
            (b"", Verdict::MaybeHttps),
            (&[21, 3, 1, 0, 2, 2, 10], Verdict::MaybeHttps),
            (b"SSH-2.0-Open", Verdict::Other),
            (b"HTT", Verdict::Other),
        ] {
            assert_eq!(verdict(answer), told, "{answer:?}");
        }
    }
}
