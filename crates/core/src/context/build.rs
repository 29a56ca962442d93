//! Makes a [`Context`] from its configuration.

use std::{collections::BTreeSet, path::PathBuf, sync::Arc};

use aws_lc_rs::digest::{SHA256, digest};
use rustls::{
    ClientConfig, RootCertStore, ServerConfig, SupportedProtocolVersion,
    client::WebPkiServerVerifier,
    crypto::{CryptoProvider, aws_lc_rs::default_provider},
    pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
    server::{ResolvesServerCert, WebPkiClientVerifier, danger::ClientCertVerifier},
    sign::CertifiedKey,
    version::{TLS12, TLS13},
};
use tls_sessiond_types::{Role, Version, cipher_suite::iana_name};

use super::{
    Context, Refusal, Sealing, Side,
    credentials::{ClientCredentials, Credential, ServerCredentials},
    scope::{Scope, ScopeBuilder},
    shared::{ClientTrust, Interned},
    suites::cipher_suites,
};
use crate::{
    cache::{Offering, Plan},
    context::{ClientAuth, ContextConfig, ScopeBy, Trust},
    pem::{self, PairError},
    store::memory::Limits,
};

fn refuse(key: impl Into<String>, why: impl ToString) -> Refusal {
    Refusal {
        key: key.into(),
        why: why.to_string(),
    }
}

pub(super) fn build(config: &ContextConfig, shared: &mut Interned) -> Result<Context, Refusal> {
    let provider = Arc::new(provider(config)?);
    let several = config.certificates.len() > 1;
    let certificate_key = |place, key: &str| match several {
        true => format!("{key}[{place}]"),
        false => key.to_owned(),
    };
    let certificates = load(&config.certificates, certificate_key)?;
    named(config, &certificates, |place| {
        certificate_key(place, "certificate")
    })?;
    let certificates = match config.self_made {
        true => vec![shared.self_made(|| self_made(&provider))?],
        false => certificates,
    };
    let client_key = |place, key: &str| format!("client_certificates[{place}].{key}");
    let client_certificates = load(&config.client_certificates, client_key)?;
    named(config, &client_certificates, |place| {
        client_key(place, "certificate")
    })?;
    let roots = roots(config, &certificates)?;

    let versions: Vec<&'static SupportedProtocolVersion> = config
        .versions
        .iter()
        .map(|&version| supported(version))
        .collect();
    if !versions.iter().all(|version| {
        provider
            .cipher_suites
            .iter()
            .any(|suite| suite.version() == *version)
    }) {
        return Err(refuse(
            "cipher_suites",
            "one of the versions has no cipher suite in this list",
        ));
    }

    let server_scope = server_scope(config, &certificates, &roots);
    let client_scope = client_scope(config, &client_certificates, &roots);
    let plan = |role| Plan {
        role,
        offering: config.offering,
        limits: Limits {
            entries_max: config.cache_entries_max,
            bytes_max: config.cache_bytes_max,
        },
        session_bytes_max: config.session_bytes_max,
    };

    let server_cache = shared.cache(server_scope, &plan(Role::Server))?;
    let client_cache = shared.cache(client_scope, &plan(Role::Client))?;
    for cache in [&server_cache, &client_cache] {
        shared.ledger.revocations.apply(&config.name, cache);
    }
    Ok(Context {
        name: config.name.as_str().into(),
        versions: config.versions.clone(),
        cipher_suites: provider
            .cipher_suites
            .iter()
            .filter(|suite| versions.contains(&suite.version()))
            .map(|suite| iana_name(suite.suite()))
            .collect(),
        alpn: config.alpn.clone(),
        options: config.options,
        close_policy: config.close_policy,
        session_timeout: config.session_timeout,
        idle_timeout: config.idle_timeout,
        cache_entries_max: config.cache_entries_max,
        cache_bytes_max: config.cache_bytes_max,
        tickets: config.tickets,
        sealing: sealing(config, shared)?,
        certificate_ends: certificates
            .iter()
            .chain(&client_certificates)
            .map(|held| held.not_after)
            .min(),
        server: server(config, certificates, &roots, &provider, &versions)?,
        client: client(
            config,
            client_certificates,
            &roots,
            &provider,
            &versions,
            client_scope,
            shared,
        )?,
        former: shared.former(&config.name, &server_cache, &client_cache),
        server_cache,
        client_cache,
        server_scope,
        scope: ScopeBuilder::new("context")
            .field(server_scope.as_bytes())
            .field(client_scope.as_bytes())
            .finish(),
        stats: shared.account(&config.name),
    })
}

/// Returns the ring that seals the sessions of a context's servers.
fn sealing(config: &ContextConfig, shared: &Interned) -> Result<Option<Sealing>, Refusal> {
    let Some(ring) = &config.ticket_ring else {
        return Ok(None);
    };
    match shared.sealers.get(ring.as_str()) {
        Some(sealer) => Ok(Some(Sealing {
            ring: ring.as_str().into(),
            sealer: Arc::clone(sealer),
        })),
        None => {
            let why = format!("there is no ring `{ring}`");
            Err(refuse("ticket_ring", why))
        }
    }
}

fn supported(version: Version) -> &'static SupportedProtocolVersion {
    match version {
        Version::Tls12 => &TLS12,
        Version::Tls13 => &TLS13,
    }
}

/// Returns the default provider of rustls with the cipher suites and groups that the configuration
/// names, in the order of the configuration. Without names, all of rustls are used.
fn provider(config: &ContextConfig) -> Result<CryptoProvider, Refusal> {
    let mut provider = default_provider();
    provider.cipher_suites = chosen(
        "cipher_suites",
        &config.cipher_suites,
        cipher_suites(),
        |suite| iana_name(suite.suite()).to_owned(),
    )?;
    provider.kx_groups = chosen(
        "key_exchange",
        &config.key_exchange,
        provider.kx_groups,
        |group| group.name().as_str().unwrap_or("unknown").to_owned(),
    )?;
    Ok(provider)
}

fn chosen<T: Copy>(
    key: &'static str,
    names: &[String],
    all: Vec<T>,
    name_of: impl Fn(&T) -> String,
) -> Result<Vec<T>, Refusal> {
    if names.is_empty() {
        return Ok(all);
    }
    names
        .iter()
        .map(|name| {
            all.iter()
                .copied()
                .find(|item| name_of(item).eq_ignore_ascii_case(name))
                .ok_or_else(|| {
                    let known: Vec<_> = all.iter().map(&name_of).collect();
                    refuse(
                        key,
                        format!("`{name}` is not known; it may be {}", known.join(", ")),
                    )
                })
        })
        .collect()
}

/// Reads chains and their keys. `name` returns the configuration key of the `certificate` or `key`
/// at a place in the list, for errors.
fn load(
    pairs: &[(PathBuf, PathBuf)],
    name: impl Fn(usize, &str) -> String,
) -> Result<Vec<Credential>, Refusal> {
    let load = |(place, (chain, key)): (usize, &(PathBuf, PathBuf))| {
        let certified = pem::read_pair(chain, key).map_err(|err| match err {
            PairError::Certificate(err) => refuse(name(place, "certificate"), err),
            PairError::Key(err) => refuse(name(place, "key"), err),
        })?;
        Credential::new(certified).map_err(|bad| {
            let why = format!(
                "{}: certificate {bad} is not a valid X.509 certificate",
                chain.display()
            );
            refuse(name(place, "certificate"), why)
        })
    };
    pairs.iter().enumerate().map(load).collect()
}

/// Makes a self-signed certificate for this host only. Its key never leaves this process.
fn self_made(provider: &CryptoProvider) -> Result<Credential, Refusal> {
    let names = vec![
        "localhost".to_owned(),
        "127.0.0.1".to_owned(),
        "::1".to_owned(),
    ];
    let made =
        rcgen::generate_simple_self_signed(names).map_err(|err| refuse("certificate", err))?;
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
    let certified = CertifiedKey::from_der(vec![made.cert.der().clone()], key, provider)
        .map_err(|err| refuse("certificate", err))?;
    Credential::new(certified).map_err(|_| {
        refuse(
            "certificate",
            "the generated self-signed certificate is not valid",
        )
    })
}

/// Returns the trust anchors of a context. The built-in context also trusts its own certificate, so
/// that a first try needs no files.
fn roots(
    config: &ContextConfig,
    certificates: &[Credential],
) -> Result<Arc<RootCertStore>, Refusal> {
    let mut roots = match &config.trust {
        Trust::System => {
            let mut roots = RootCertStore::empty();
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            roots
        }
        Trust::File(path) => pem::read_anchors(path).map_err(|err| refuse("ca", err))?,
    };
    if config.self_made {
        for credential in certificates {
            roots
                .add(credential.chain()[0].clone())
                .map_err(|err| refuse("certificate", err))?;
        }
    }
    Ok(Arc::new(roots))
}

/// Returns the digest of the trust anchors. It does not depend on their order.
fn anchors(roots: &RootCertStore) -> Vec<u8> {
    let mut anchors: Vec<_> = roots
        .roots
        .iter()
        .map(|anchor| {
            let constraints = anchor
                .name_constraints
                .as_ref()
                .map_or(&[][..], AsRef::as_ref);
            ScopeBuilder::new("anchor")
                .field(&anchor.subject)
                .field(&anchor.subject_public_key_info)
                .field(constraints)
                .finish()
        })
        .map(|scope| scope.as_bytes().to_vec())
        .collect();
    anchors.sort_unstable();
    digest(&SHA256, &anchors.concat()).as_ref().to_vec()
}

/// Adds the part of the certificates that belongs to the scope: their chains, or the names that
/// they prove.
fn certificates_of_scope(
    config: &ContextConfig,
    builder: ScopeBuilder,
    credentials: &[Credential],
) -> ScopeBuilder {
    if config.scope_by == ScopeBy::Certificate || config.self_made {
        let builder = builder.field((credentials.len() as u64).to_be_bytes());
        return credentials.iter().fold(builder, |builder, credential| {
            builder.list(credential.chain().iter())
        });
    }
    // A sorted set: the order of the file does not matter, and keys of two kinds for the same names
    // count once.
    let proved: BTreeSet<_> = credentials.iter().filter_map(Credential::proves).collect();
    let builder = builder
        .field("names")
        .field((proved.len() as u64).to_be_bytes());
    proved
        .into_iter()
        .fold(builder, |builder, (names, authority)| {
            builder.list(names.iter()).field(authority)
        })
}

/// Refuses a certificate without names under `scope_by = "names"`, because such a scope could not
/// tell it from others.
fn named(
    config: &ContextConfig,
    credentials: &[Credential],
    name: impl Fn(usize) -> String,
) -> Result<(), Refusal> {
    let nameless = || {
        credentials
            .iter()
            .position(|credential| credential.proves().is_none())
    };
    match config.scope_by {
        ScopeBy::Names => nameless().map_or(Ok(()), |place| {
            let why = "the certificate has no subject alternative name of DNS, IP or URI, which scope_by = \"names\" needs";
            Err(refuse(name(place), why))
        }),
        ScopeBy::Certificate => Ok(()),
    }
}

fn server_scope(
    config: &ContextConfig,
    certificates: &[Credential],
    roots: &RootCertStore,
) -> Scope {
    let builder = ScopeBuilder::new("server")
        .field(&config.session_id_context)
        .field("rustls");
    let builder = certificates_of_scope(config, builder, certificates).list(config.alpn.iter());
    match config.client_auth {
        ClientAuth::None => builder.field("none").finish(),
        ClientAuth::Request => builder.field("request").field(anchors(roots)).finish(),
        ClientAuth::Require => builder.field("require").field(anchors(roots)).finish(),
    }
}

fn client_scope(
    config: &ContextConfig,
    certificates: &[Credential],
    roots: &RootCertStore,
) -> Scope {
    let builder = ScopeBuilder::new("client")
        .field(&config.session_id_context)
        .field("rustls");
    certificates_of_scope(config, builder, certificates)
        .list(config.alpn.iter())
        .field(anchors(roots))
        .field(match config.offering {
            Offering::Shared => "shared",
            Offering::Explicit => "explicit",
        })
        .finish()
}

/// Makes one configuration of rustls for all versions, and one for each single version.
fn side<C>(
    config: &ContextConfig,
    versions: &[&'static SupportedProtocolVersion],
    make: impl Fn(&[&'static SupportedProtocolVersion]) -> Result<C, rustls::Error>,
) -> Result<Side<C>, Refusal> {
    let make = |versions: &[&'static SupportedProtocolVersion]| {
        make(versions)
            .map(Arc::new)
            .map_err(|err| refuse("versions", err))
    };
    let alone = |version| match config.versions.contains(&version) {
        true => make(&[supported(version)]).map(Some),
        false => Ok(None),
    };
    Ok(Side {
        all: make(versions)?,
        tls12: alone(Version::Tls12)?,
        tls13: alone(Version::Tls13)?,
    })
}

fn alpn(config: &ContextConfig) -> Vec<Vec<u8>> {
    config
        .alpn
        .iter()
        .map(|protocol| protocol.clone().into_bytes())
        .collect()
}

fn server(
    config: &ContextConfig,
    certificates: Vec<Credential>,
    roots: &Arc<RootCertStore>,
    provider: &Arc<CryptoProvider>,
    versions: &[&'static SupportedProtocolVersion],
) -> Result<Option<Side<ServerConfig>>, Refusal> {
    if certificates.is_empty() {
        return Ok(None);
    }
    let verifier: Arc<dyn ClientCertVerifier> = match config.client_auth {
        ClientAuth::None => WebPkiClientVerifier::no_client_auth(),
        asks => {
            let builder = WebPkiClientVerifier::builder_with_provider(
                Arc::clone(roots),
                Arc::clone(provider),
            );
            let builder = match asks {
                ClientAuth::Require => builder,
                _ => builder.allow_unauthenticated(),
            };
            builder
                .build()
                .map_err(|err| refuse("ca", format!("client_auth needs trust anchors: {err}")))?
        }
    };
    let credentials: Arc<dyn ResolvesServerCert> = Arc::new(ServerCredentials::new(certificates));
    let made = side(config, versions, |versions| {
        let mut server = ServerConfig::builder_with_provider(Arc::clone(provider))
            .with_protocol_versions(versions)?
            .with_client_cert_verifier(Arc::clone(&verifier))
            .with_cert_resolver(Arc::clone(&credentials));
        server.alpn_protocols = alpn(config);
        server.ignore_client_order = config.options.cipher_server_preference;
        server.send_tls13_tickets = config.tickets;
        Ok(server)
    })?;
    Ok(Some(made))
}

fn client(
    config: &ContextConfig,
    certificates: Vec<Credential>,
    roots: &Arc<RootCertStore>,
    provider: &Arc<CryptoProvider>,
    versions: &[&'static SupportedProtocolVersion],
    scope: Scope,
    shared: &mut Interned,
) -> Result<Option<Side<ClientConfig>>, Refusal> {
    if roots.is_empty() {
        return Ok(None);
    }
    let verifier =
        WebPkiServerVerifier::builder_with_provider(Arc::clone(roots), Arc::clone(provider))
            .build()
            .map_err(|err| refuse("ca", err))?;
    let trust = shared.trust(
        scope,
        ClientTrust {
            verifier,
            credentials: Arc::new(ClientCredentials::new(certificates)),
        },
    )?;
    let made = side(config, versions, |versions| {
        let mut client = ClientConfig::builder_with_provider(Arc::clone(provider))
            .with_protocol_versions(versions)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::clone(&trust.verifier))
            .with_client_cert_resolver(Arc::<ClientCredentials>::clone(&trust.credentials));
        client.alpn_protocols = alpn(config);
        Ok(client)
    })?;
    Ok(Some(made))
}
