//! Certificate files: a bundle with a block that would be skipped is refused, errors name the file
//! and the fault, and `check` warns of settings that are valid but rarely intended.

use std::{fs, path::Path, time::Duration};

use openssl::{
    asn1::Asn1Time,
    bn::BigNum,
    hash::MessageDigest,
    pkey::{PKey, Private},
    rsa::Rsa,
    x509::{X509, X509NameBuilder},
};
use rcgen::{BasicConstraints, IsCa, date_time_ymd};
use tls_sessiond_core::clock::Clock;

use crate::{
    command::{run, text},
    log_lines::Logging,
    pki::{self, Authority},
};

const CONTEXT: &str =
    "[[context]]\ncertificate = \"tls.crt\"\nkey = \"tls.key\"\nca = \"ca.pem\"\n";

/// Runs `check` on a configuration in a folder. Returns the exit status and the output.
fn check(folder: &Path, config: &str) -> (Option<i32>, String) {
    let file = folder.join("c.toml");
    fs::write(&file, config).unwrap();
    let output = run(&["check", file.to_str().unwrap()]);
    (
        output.status.code(),
        text(&output.stdout) + &text(&output.stderr),
    )
}

fn refused(folder: &Path, said: &[&str], what: &str) {
    let (status, told) = check(folder, CONTEXT);
    assert_eq!(status, Some(78), "{what}: {told}");
    assert!(
        said.iter().all(|said| told.contains(said)),
        "{what}: {told}"
    );
}

#[test]
fn bundle_with_an_unreadable_anchor_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    pki::localhost(folder);
    let first = fs::read_to_string(folder.join("ca.pem")).unwrap();
    let second = Authority::new("second").pem;
    let relabelled = |label: &str| format!("{first}{}", second.replace("CERTIFICATE", label));
    let begins = 1 + first.lines().count();
    for (what, bundle, said) in [
        (
            "a byte order mark",
            format!("\u{feff}{first}{second}"),
            "byte order mark".to_owned(),
        ),
        (
            "indentation",
            format!(
                "{first}{}",
                second
                    .lines()
                    .map(|line| format!("    {line}\n"))
                    .collect::<String>()
            ),
            format!("line {begins}: there are blanks before"),
        ),
        (
            "a trusted certificate",
            relabelled("TRUSTED CERTIFICATE"),
            format!(
                "line {begins} is an OpenSSL TRUSTED CERTIFICATE; convert it with `openssl x509 -in FILE`"
            ),
        ),
        (
            "PKCS#7",
            relabelled("PKCS7"),
            format!("line {begins} is a PKCS#7 bundle; convert it with"),
        ),
        (
            "an unknown label",
            relabelled("CERTIFICAT"),
            format!("line {begins} is a PEM block of another kind"),
        ),
    ] {
        fs::write(folder.join("ca.pem"), bundle).unwrap();
        refused(folder, &["c.toml:4: context[0].ca: ", &said], what);
    }
    // These were meant as PEM blocks and are not.
    let lines: Vec<_> = second.lines().collect();
    let body = lines[1..lines.len() - 1].join("\n") + "\n";
    for (what, bytes) in [
        ("four dashes", second.replace("-----", "----").into_bytes()),
        (
            "a blank behind the dashes",
            second.replace("-----BEGIN", "----- BEGIN").into_bytes(),
        ),
        (
            "other dashes",
            second.replace("-----", "\u{2013}\u{2013}").into_bytes(),
        ),
        (
            "lower case",
            second
                .replace("BEGIN CERTIFICATE", "begin certificate")
                .into_bytes(),
        ),
        (
            "a tab",
            second
                .replace("BEGIN CERTIFICATE", "BEGIN\tCERTIFICATE")
                .into_bytes(),
        ),
        ("no markers", body.into_bytes()),
        (
            "DER",
            X509::from_pem(second.as_bytes()).unwrap().to_der().unwrap(),
        ),
        (
            "UTF-16",
            second.encode_utf16().flat_map(u16::to_le_bytes).collect(),
        ),
    ] {
        fs::write(folder.join("ca.pem"), [first.as_bytes(), &bytes].concat()).unwrap();
        refused(
            folder,
            &["c.toml:4: context[0].ca: ", "ca.pem: line "],
            what,
        );
    }
    // The older label of a certificate, and text that tools write between the blocks, are accepted.
    let good = format!(
        "# first\n{first}\nsubject=CN=second\n{}",
        second.replace("CERTIFICATE", "X509 CERTIFICATE")
    );
    fs::write(folder.join("ca.pem"), good).unwrap();
    assert_eq!(check(folder, CONTEXT).0, Some(0));
}

/// Returns a self-signed certificate. `version` counts from zero: 2 is X.509 version 3.
fn own(key: &PKey<Private>, version: i32) -> X509 {
    let mut name = X509NameBuilder::new().unwrap();
    name.append_entry_by_text("CN", "localhost").unwrap();
    let name = name.build();
    let mut made = X509::builder().unwrap();
    made.set_version(version).unwrap();
    made.set_serial_number(&BigNum::from_u32(7).unwrap().to_asn1_integer().unwrap())
        .unwrap();
    made.set_subject_name(&name).unwrap();
    made.set_issuer_name(&name).unwrap();
    made.set_pubkey(key).unwrap();
    made.set_not_before(&Asn1Time::days_from_now(0).unwrap())
        .unwrap();
    made.set_not_after(&Asn1Time::days_from_now(90).unwrap())
        .unwrap();
    made.sign(key, MessageDigest::sha256()).unwrap();
    made.build()
}

#[test]
fn errors_of_certificates_and_keys_name_the_fault() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    pki::localhost(folder);
    let rsa = |bits| PKey::from_rsa(Rsa::generate(bits).unwrap()).unwrap();
    let (short, good) = (rsa(1024), rsa(2048));
    let write = |key: &[u8], certificate: &[u8]| {
        fs::write(folder.join("tls.key"), key).unwrap();
        fs::write(folder.join("tls.crt"), certificate).unwrap();
    };
    let pem = |key: &PKey<Private>| key.private_key_to_pem_pkcs8().unwrap();
    let of = |key: &PKey<Private>, version| own(key, version).to_pem().unwrap();
    // The error names the line of the value at fault: the key's for a faulty key, not the
    // certificate's.
    let (key, certificate) = (
        "c.toml:3: context[0].key: ",
        "c.toml:2: context[0].certificate: ",
    );

    write(&pem(&short), &of(&short, 2));
    refused(
        folder,
        &[key, "tls.key: the RSA key has 1024 bits; expected 2048"],
        "RSA-1024",
    );
    write(
        &short.rsa().unwrap().private_key_to_pem().unwrap(),
        &of(&short, 2),
    );
    refused(
        folder,
        &[key, "tls.key: the RSA key has 1024 bits; expected 2048"],
        "RSA-1024, PKCS#1",
    );
    write(&pem(&good), &of(&good, 0));
    refused(
        folder,
        &[
            certificate,
            "certificate 1 of the file is an X.509 certificate of version 1; expected version 3",
        ],
        "version 1",
    );
    let encrypted =
        good.private_key_to_pem_pkcs8_passphrase(openssl::symm::Cipher::aes_128_cbc(), b"pass");
    write(&encrypted.unwrap(), &of(&good, 2));
    refused(
        folder,
        &[
            key,
            "encrypted private key; decrypt it with `openssl pkey -in FILE`",
        ],
        "encrypted",
    );
    write(&good.private_key_to_pkcs8().unwrap(), &of(&good, 2));
    refused(
        folder,
        &[
            key,
            "is DER, not PEM; convert it with `openssl pkey -inform DER",
        ],
        "a key in DER",
    );
    write(&pem(&good), &own(&good, 2).to_der().unwrap());
    refused(
        folder,
        &[
            certificate,
            "is DER, not PEM; convert it with `openssl x509 -inform DER",
        ],
        "a certificate in DER",
    );
    let curve = openssl::ec::EcGroup::from_curve_name(openssl::nid::Nid::SECP256K1).unwrap();
    let other = PKey::from_ec_key(openssl::ec::EcKey::generate(&curve).unwrap()).unwrap();
    write(&pem(&other), &of(&other, 2));
    refused(
        folder,
        &[
            key,
            "expected RSA, ECDSA with P-256, P-384 or P-521, or Ed25519",
        ],
        "another curve",
    );
    write(&pem(&good), &of(&good, 2));
    assert_eq!(check(folder, CONTEXT).0, Some(0));
}

/// Writes a certificate for localhost that is valid from day `from` to day `to`, counted from now.
fn valid(authority: &Authority, folder: &Path, from: i64, to: i64) {
    let now = Clock::System.now().wall().as_millis() / 1000;
    let day = |days: i64| {
        let seconds = now.checked_add_signed(days * 86_400).unwrap();
        date_time_ymd(1970, 1, 1) + Duration::from_secs(seconds)
    };
    authority
        .sign(&["localhost"], |params| {
            (params.not_before, params.not_after) = (day(from), day(to));
        })
        .write(folder, "tls");
}

#[test]
fn check_warns_of_valid_but_unlikely_settings() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    pki::localhost(folder);
    assert_eq!(
        check(folder, CONTEXT),
        (
            Some(0),
            format!("{}/c.toml: good; contexts: default\n", folder.display())
        )
    );
    let authority = Authority::new("test");
    fs::write(folder.join("ca.pem"), &authority.pem).unwrap();
    let warned = |config: &str, place: &str, said: &str| {
        let (status, told) = check(folder, config);
        assert_eq!(status, Some(0), "{told}");
        assert!(
            told.contains(&format!("warning: {}/c.toml:{place}: ", folder.display())),
            "{told}\nwant: {place}"
        );
        assert!(
            told.contains(said) && told.contains("good, with a warning; contexts: default"),
            "{told}"
        );
    };
    for (lines, place, said) in [
        (
            "options = [\"no-session-cache\"]\n",
            "5: context[0].options",
            "no client ever resumes",
        ),
        (
            "versions = [\"1.3\"]\ntickets = 0\n",
            "6: context[0].tickets",
            "ever resumes",
        ),
        (
            "close_policy = \"written\"\noptions = [\"quiet-shutdown\"]\n",
            "5: context[0].close_policy",
            "no connection counts as closed",
        ),
    ] {
        warned(&format!("{CONTEXT}{lines}"), place, said);
    }
    warned(
        &format!("{CONTEXT}session_bytes_max = \"1B\"\n"),
        "5: context[0].session_bytes_max",
        "hardly any session is kept",
    );
    for (from, to, said) in [
        (-80, 3, "the certificate expires soon: it is valid until "),
        (-30, -1, "the certificate has expired: it was valid until "),
        (2, 90, "the certificate is not valid before "),
    ] {
        valid(&authority, folder, from, to);
        warned(CONTEXT, "2: context[0].certificate", said);
    }
    let ca = |params: &mut rcgen::CertificateParams| {
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    };
    authority.sign(&["localhost"], ca).write(folder, "tls");
    warned(CONTEXT, "2: context[0].certificate", "CA:TRUE");

    // An expired certificate behind the leaf, and among the trust anchors.
    valid(&authority, folder, -1, 90);
    let leaf = fs::read_to_string(folder.join("tls.crt")).unwrap();
    let key = fs::read(folder.join("tls.key")).unwrap();
    valid(&authority, folder, -30, -1);
    let ended = fs::read_to_string(folder.join("tls.crt")).unwrap();
    fs::write(folder.join("tls.crt"), leaf.clone() + &ended).unwrap();
    fs::write(folder.join("tls.key"), &key).unwrap();
    warned(
        CONTEXT,
        "2: context[0].certificate",
        "certificate 2 of the chain has expired",
    );
    fs::write(folder.join("tls.crt"), leaf).unwrap();
    fs::write(folder.join("ca.pem"), format!("{}{ended}", authority.pem)).unwrap();
    warned(CONTEXT, "4: context[0].ca", "trust anchor 2 has expired");
    fs::write(folder.join("ca.pem"), &authority.pem).unwrap();

    // A service mesh issues certificates for a day. A fresh one causes no warning.
    valid(&authority, folder, 0, 1);
    assert!(
        check(folder, CONTEXT)
            .1
            .ends_with("good; contexts: default\n")
    );
    // Client certificates and the listener's certificate are checked too. Several warnings are
    // counted.
    valid(&authority, folder, -30, -1);
    let all = format!(
        "[listen]\napi = [\"tls://127.0.0.1:0\"]\n[listen.tls]\ncertificate = \"tls.crt\"\nkey = \"tls.key\"\nclient_ca = \"ca.pem\"\n\
         [[access]]\nidentity = \"dns:a.test\"\ncontexts = [\"*\"]\nrole = \"worker\"\n{CONTEXT}\
         client_certificates = [{{ certificate = \"tls.crt\", key = \"tls.key\" }}]\n"
    );
    let (status, told) = check(folder, &all);
    assert_eq!(status, Some(0), "{told}");
    for place in [
        "4: listen.tls.certificate",
        "12: context[0].certificate",
        "15: context[0].client_certificates[0].certificate",
    ] {
        assert!(told.contains(&format!("c.toml:{place}: ")), "{told}");
    }
    assert!(
        told.contains("good, with 3 warnings; contexts: default"),
        "{told}"
    );
}

#[tokio::test]
async fn start_and_reload_log_the_warnings() {
    let config = "[[context]]\noptions = [\"no-session-cache\"]\n";
    let daemon = Logging::start(None, config).await;
    daemon.until("stderr", "context[0].options").await;
    daemon.reload().await;
    daemon.until("stderr", "configuration reloaded").await;
    let lines = daemon.end().await;
    let warned = lines.iter().filter(|line| line["level"] == "WARN");
    let told = warned.filter(|line| {
        line["fields"]["warning"]
            .as_str()
            .is_some_and(|it| it.contains("context[0].options"))
    });
    assert_eq!(told.count(), 2, "{lines:?}");
}
