//! TLS as a web configuration asks for it.

use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig, SignatureScheme,
    SupportedCipherSuite, SupportedProtocolVersion, version,
};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::metrics::web_config::{ClientAuthType, TlsServerConfig, TlsVersion};

/// The largest file with certificates or a key, in bytes.
const MAX_PEM: u64 = 1 << 20;

/// The configuration for new connections.
///
/// # Errors
///
/// What cannot be used, and why, as one line.
pub(super) fn server_config(config: &TlsServerConfig) -> Result<ServerConfig, String> {
    let certificate = pem_of("cert", config.cert_file.as_deref(), config.cert.as_deref())?
        .ok_or("tls_server_config needs cert_file and key_file")?;
    let key = pem_of("key", config.key_file.as_deref(), config.key.as_deref())?
        .ok_or("tls_server_config has a certificate, but no key_file")?;
    let chain = certificates(&certificate)?;
    let private = PrivateKeyDer::from_pem_slice(&key.pem).map_err(|error| match error {
        pem::Error::NoItemsFound => format!("{} holds no private key that is not encrypted", key.from),
        error => format!("{}: {error}", key.from),
    })?;

    let provider = Arc::new(provider(config));
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&versions(config)?)
        .map_err(|error| format!("tls_server_config: {error}"))?;
    let builder = match client_verifier(config, &provider)? {
        Some(verifier) => builder.with_client_cert_verifier(verifier),
        None => builder.with_no_client_auth(),
    };
    let mut server = builder.with_single_cert(chain, private).map_err(|error| {
        format!("the certificate in {} cannot be used with the key in {}: {error}", certificate.from, key.from)
    })?;
    // HTTP/2 would put all scrapes of a job on one connection, which has one place.
    server.alpn_protocols = vec![b"http/1.1".to_vec()];
    server.ignore_client_order = config.prefer_server_cipher_suites.unwrap_or(!config.cipher_suites.is_empty());
    Ok(server)
}

/// What a client that speaks plain HTTP gets. The sentence is also in the status line, which Prometheus shows.
const SPEAKS_HTTPS: &str = "This port speaks HTTPS; use https:// (Prometheus: scheme: https)\n";

/// The type of TLS's first record (RFC 8446, 5.1). No request of HTTP begins with it.
pub(super) const HANDSHAKE: u8 = 0x16;

/// Establishes TLS as the server; `None` if the client leaves without a word, as a TCP health check does.
///
/// # Errors
///
/// Why that failed.
pub(super) async fn accept(
    mut stream: TcpStream,
    config: Arc<ServerConfig>,
) -> Result<Option<TlsStream<TcpStream>>, String> {
    let mut first = [HANDSHAKE];
    let peeked = stream.peek(&mut first).await.map_err(|error| error.to_string())?;
    if peeked == 0 {
        return Ok(None);
    }
    if first != [HANDSHAKE] {
        // Closing with unread bytes would discard the answer on its way: the request is read, as far as it goes.
        let mut request = vec![0; 16 * 1024];
        let _ = stream.read(&mut request).await;
        let length = SPEAKS_HTTPS.len();
        let answer = format!(
            "HTTP/1.1 400 This port speaks HTTPS - set scheme: https\r\nContent-Type: text/plain; charset=utf-8\r\n\
             Content-Length: {length}\r\nConnection: close\r\n\r\n{SPEAKS_HTTPS}"
        );
        let _ = stream.write_all(answer.as_bytes()).await;
        let _ = stream.shutdown().await;
        return Err("the client does not speak TLS; is its scheme http?".into());
    }
    TlsAcceptor::from(config).accept(stream).await.map(Some).map_err(|error| error.to_string())
}

/// Text with certificates or a key, and where it is from.
struct Pem {
    pem: Vec<u8>,
    from: String,
}

fn pem_of(key: &str, file: Option<&Path>, inline: Option<&str>) -> Result<Option<Pem>, String> {
    match (file, inline) {
        (Some(_), Some(_)) => Err(format!("tls_server_config has both {key} and {key}_file; keep one")),
        (None, None) => Ok(None),
        (None, Some(text)) => Ok(Some(Pem { pem: text.into(), from: format!("tls_server_config.{key}") })),
        (Some(path), None) => {
            let from = path.display().to_string();
            let pem =
                read(path).map_err(|error| format!("cannot read {from} (tls_server_config.{key}_file): {error}"))?;
            Ok(Some(Pem { pem, from }))
        }
    }
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    use std::io::Read as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    let mut bytes = Vec::new();
    let flags = i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).unwrap_or_default();
    let file = std::fs::OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    // Another, such as a pipe, could block for ever.
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    file.take(MAX_PEM + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_PEM {
        return Err(io::Error::other(format!("it is larger than {MAX_PEM} bytes")));
    }
    Ok(bytes)
}

fn certificates(pem: &Pem) -> Result<Vec<CertificateDer<'static>>, String> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem.pem).collect();
    match all {
        Ok(all) if !all.is_empty() => Ok(all),
        Ok(_) => Err(format!("{} holds no certificate", pem.from)),
        Err(error) => Err(format!("{}: {error}", pem.from)),
    }
}

/// ring, with the configured suites and groups only.
fn provider(config: &TlsServerConfig) -> CryptoProvider {
    let mut provider = ring::default_provider();
    if !config.cipher_suites.is_empty() {
        // Those of TLS 1.3 cannot be chosen.
        let (tls13, tls12): (Vec<SupportedCipherSuite>, Vec<SupportedCipherSuite>) =
            provider.cipher_suites.iter().partition(|suite| suite.tls13().is_some());
        let chosen = config.cipher_suites.iter().filter_map(|wanted| {
            // rustls and Go both use IANA's names.
            tls12.iter().copied().find(|suite| format!("{:?}", suite.suite()) == wanted.0)
        });
        provider.cipher_suites = tls13.into_iter().chain(chosen).collect();
    }
    if !config.curve_preferences.is_empty() {
        let chosen = config.curve_preferences.iter().filter_map(|wanted| {
            let name = match wanted.0 {
                "CurveP256" => "secp256r1",
                "CurveP384" => "secp384r1",
                other => other,
            };
            provider.kx_groups.iter().copied().find(|group| format!("{:?}", group.name()) == name)
        });
        provider.kx_groups = chosen.collect();
    }
    provider
}

fn versions(config: &TlsServerConfig) -> Result<Vec<&'static SupportedProtocolVersion>, String> {
    let (min, max) = (config.min_version.unwrap_or(TlsVersion::Tls12), config.max_version.unwrap_or(TlsVersion::Tls13));
    if min > max {
        return Err("tls_server_config: min_version is higher than max_version".into());
    }
    let all = [(TlsVersion::Tls12, &version::TLS12), (TlsVersion::Tls13, &version::TLS13)];
    Ok(all.into_iter().filter(|(version, _)| (min..=max).contains(version)).map(|(_, version)| version).collect())
}

/// Who checks the clients' certificates; `None` if they are not asked for any.
fn client_verifier(
    config: &TlsServerConfig,
    provider: &Arc<CryptoProvider>,
) -> Result<Option<Arc<dyn ClientCertVerifier>>, String> {
    use ClientAuthType as Type;
    let auth = config.client_auth_type;
    let ca = pem_of("client_ca", config.client_ca_file.as_deref(), config.client_ca.as_deref())?;
    let verifies = matches!(auth, Type::VerifyClientCertIfGiven | Type::RequireAndVerifyClientCert);
    if ca.is_some() && auth == Type::NoClientCert {
        return Err("tls_server_config has a client_ca_file, but client_auth_type is NoClientCert; \
                    set it to RequireAndVerifyClientCert"
            .into());
    }
    if !config.client_allowed_sans.is_empty() && !verifies {
        return Err(format!(
            "tls_server_config.client_allowed_sans needs a verified certificate, but client_auth_type is {auth:?}; \
             set it to RequireAndVerifyClientCert"
        ));
    }
    let inner: Arc<dyn ClientCertVerifier> = match auth {
        Type::NoClientCert => return Ok(None),
        Type::RequestClientCert | Type::RequireAnyClientCert => Arc::new(AnyCertificate {
            required: auth == Type::RequireAnyClientCert,
            algorithms: provider.signature_verification_algorithms,
        }),
        Type::VerifyClientCertIfGiven | Type::RequireAndVerifyClientCert => {
            let ca =
                ca.ok_or_else(|| format!("client_auth_type {auth:?} needs client_ca_file in tls_server_config"))?;
            let mut roots = RootCertStore::empty();
            for certificate in certificates(&ca)? {
                roots.add(certificate).map_err(|error| format!("{}: {error}", ca.from))?;
            }
            let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider));
            let builder = if auth == Type::VerifyClientCertIfGiven { builder.allow_unauthenticated() } else { builder };
            builder.build().map_err(|error| format!("{}: {error}", ca.from))?
        }
    };
    if config.client_allowed_sans.is_empty() {
        return Ok(Some(inner));
    }
    Ok(Some(Arc::new(AllowedNames { names: config.client_allowed_sans.clone(), inner })))
}

/// Accepts every certificate whose private key the client has.
#[derive(Debug)]
struct AnyCertificate {
    required: bool,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ClientCertVerifier for AnyCertificate {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn client_auth_mandatory(&self) -> bool {
        self.required
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// Accepts verified certificates with one of these names, compared as exporter-toolkit does: exactly.
#[derive(Debug)]
struct AllowedNames {
    names: Vec<String>,
    inner: Arc<dyn ClientCertVerifier>,
}

impl AllowedNames {
    fn has_one(&self, certificate: &CertificateDer<'_>) -> Result<bool, rustls::Error> {
        let certificate = webpki::EndEntityCert::try_from(certificate)
            .map_err(|_| rustls::Error::InvalidCertificate(CertificateError::BadEncoding))?;
        let exact = certificate.valid_dns_names().chain(certificate.valid_uri_names());
        let exact: Vec<&str> = exact.collect();
        Ok(self.names.iter().any(|name| {
            exact.contains(&name.as_str())
                || name.parse::<IpAddr>().is_ok_and(|ip| {
                    certificate.verify_is_valid_for_subject_name(&ServerName::IpAddress(ip.into())).is_ok()
                })
        }))
    }
}

impl ClientCertVerifier for AllowedNames {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.inner.root_hint_subjects()
    }

    fn offer_client_auth(&self) -> bool {
        self.inner.offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.inner.client_auth_mandatory()
    }

    fn verify_client_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verified = self.inner.verify_client_cert(certificate, intermediates, now)?;
        if self.has_one(certificate)? {
            return Ok(verified);
        }
        Err(rustls::Error::General("the client's certificate has none of the names in client_allowed_sans".into()))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}
