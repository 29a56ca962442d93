//! Subjects of certificates in access rules.

use std::{fs, path::Path};

use rcgen::{
    DnType, DnValue, SanType,
    string::{BmpString, PrintableString, TeletexString, UniversalString},
};
use tls_sessiond_proto as pb;
use tokio::process::Command;

use crate::{
    doors::{denied, not_there, why},
    pki::{Authority, Leaf},
    process::run,
    ruled::{Running, prepare, rule, write_config},
};

/// Returns a leaf with these attributes and no alternative name. The `openssl` program signs it
/// with the authority of the folder. The subject is written as for `openssl req -subj`.
async fn signed_by_openssl(folder: &Path, subject: &str) -> Leaf {
    fs::write(
        folder.join("leaf.cnf"),
        "[req]\ndistinguished_name = dn\n[dn]\n[leaf]\nbasicConstraints = CA:FALSE\n",
    )
    .unwrap();
    let openssl = |args: &[&str]| {
        let mut command = Command::new("openssl");
        command.current_dir(folder).args(args);
        command
    };
    let key = [
        "req",
        "-new",
        "-config",
        "leaf.cnf",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
    ];
    let mut request = openssl(&key);
    request.args([
        "-utf8", "-keyout", "leaf.key", "-out", "leaf.csr", "-subj", subject,
    ]);
    let sign = [
        "x509", "-req", "-in", "leaf.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-days", "2",
        "-out", "leaf.crt",
    ];
    let mut sign = openssl(&sign);
    sign.args([
        "-set_serial",
        "7",
        "-extfile",
        "leaf.cnf",
        "-extensions",
        "leaf",
    ]);
    for command in [&mut request, &mut sign] {
        let (written, good) = run(command, "").await;
        assert!(good, "{subject}: {written}");
    }
    let read = |name: &str| fs::read_to_string(folder.join(name)).unwrap();
    Leaf {
        chain: read("leaf.crt"),
        key: read("leaf.key"),
    }
}

/// Returns the subject of a certificate as `openssl x509` prints it.
async fn printed(leaf: &Leaf) -> String {
    let mut command = Command::new("openssl");
    command.args(["x509", "-noout", "-subject", "-nameopt", "RFC2253"]);
    let (written, good) = run(&mut command, &leaf.chain).await;
    assert!(good, "{written}");
    written
        .trim_end_matches('\n')
        .strip_prefix("subject=")
        .expect("openssl printed no subject")
        .to_owned()
}

fn named(authority: &Authority, attributes: &[(DnType, DnValue)]) -> Leaf {
    authority.sign(&[], |params| {
        params.distinguished_name = rcgen::DistinguishedName::new();
        for (kind, value) in attributes {
            params.distinguished_name.push(kind.clone(), value.clone());
        }
    })
}

fn utf8(text: &str) -> DnValue {
    DnValue::Utf8String(text.into())
}

#[tokio::test]
async fn one_attribute_with_a_comma_is_not_two_attributes() {
    let (folder, authority) = prepare("");
    let two = named(
        &authority,
        &[
            (DnType::CommonName, utf8("job")),
            (DnType::OrganizationName, utf8("Admins")),
        ],
    );
    let one = named(
        &authority,
        &[(DnType::OrganizationName, utf8("Admins,CN=job"))],
    );
    let spaced = named(
        &authority,
        &[(DnType::OrganizationName, utf8("Admins, CN=job"))],
    );
    let wanted = printed(&two).await;
    assert_eq!(wanted, "O=Admins,CN=job");
    write_config(
        folder.path(),
        &rule(&format!("subject:{wanted}"), "*", "worker"),
    );
    let daemon = Running::start(folder, authority).await;
    daemon.over_tls(&two).await.open("").await.unwrap();
    for impostor in [one, spaced] {
        assert_eq!(
            why(daemon.over_tls(&impostor).await.open("").await),
            denied()
        );
    }
    daemon.stop().await;
}

#[tokio::test]
async fn subject_as_openssl_prints_it_is_a_matching_rule() {
    let (folder, authority) = prepare("");
    let mut leaves = Vec::new();
    for subject in [
        "/DC=org/DC=example/O=Admins\\, Ltd/CN=job",
        "/O=Admins, CN=other",
        "/O=a \"quoted\" <name>; a+b=c \\\\ back",
        "/CN= spaces at both ends ",
        "/CN=#hash",
        "/O=Société Générale/CN=日本",
        "/O=multi/CN=two+OU=in one+UID=set",
        "/emailAddress=job@example.org/serialNumber=7/street=Main Street 1/SN=Doe/GN=Jo",
        "/1.3.6.1.4.1.99999.7=no name for its type/CN=x",
        "/unstructuredAddress=here/challengePassword=none/INN=1/OGRN=2/SNILS=3/CN=x",
        "/C=DE/ST=Berlin/L=Berlin/postalCode=10115/businessCategory=none/jurisdictionC=DE",
    ] {
        leaves.push(signed_by_openssl(folder.path(), subject).await);
    }
    leaves.push(named(
        &authority,
        &[(DnType::CommonName, utf8("tab\tand line\nend"))],
    ));
    leaves.push(named(
        &authority,
        &[(
            DnType::CommonName,
            DnValue::TeletexString(TeletexString::try_from("teletex").unwrap()),
        )],
    ));
    let stranger = signed_by_openssl(folder.path(), "/O=Admins/CN=job").await;
    let mut rules = String::new();
    for leaf in &leaves {
        rules += &rule(&format!("subject:{}", printed(leaf).await), "*", "worker");
    }
    write_config(folder.path(), &(rules + &rule("local", "*", "observer")));
    let daemon = Running::start(folder, authority).await;
    for leaf in &leaves {
        let what = printed(leaf).await;
        let opened = daemon.over_tls(leaf).await.open("").await;
        let id = opened.unwrap_or_else(|refused| panic!("{what}: {refused:?}"));
        let owner = daemon.owner(id).await;
        // The owner may differ from the printed subject in the order within an RDN and in the
        // string type of an unnamed attribute type.
        let same = !what.contains('+') && !what.contains("=#");
        assert!(
            owner == format!("subject:{what}") || !same,
            "{owner} and {what}"
        );
    }
    assert_eq!(
        why(daemon.over_tls(&stranger).await.open("").await),
        denied()
    );
    daemon.stop().await;
}

#[tokio::test]
async fn subject_match_ignores_string_type_and_respects_case() {
    let daemon = Running::with(&rule("subject:CN=job,O=a b", "*", "worker")).await;
    let organization = (DnType::OrganizationName, utf8("a b"));
    let with = |value| {
        named(
            &daemon.authority,
            &[organization.clone(), (DnType::CommonName, value)],
        )
    };
    for value in [
        utf8("job"),
        DnValue::PrintableString(PrintableString::try_from("job").unwrap()),
        DnValue::TeletexString(TeletexString::try_from("job").unwrap()),
        DnValue::BmpString(BmpString::try_from("job").unwrap()),
        DnValue::UniversalString(UniversalString::try_from("job").unwrap()),
        DnValue::Ia5String("job".try_into().unwrap()),
    ] {
        daemon.over_tls(&with(value)).await.open("").await.unwrap();
    }
    for other in ["Job", "job ", " job", "jo  b", "job\0"] {
        assert_eq!(
            why(daemon.over_tls(&with(utf8(other))).await.open("").await),
            denied(),
            "{other:?}"
        );
    }
    let turned = [(DnType::CommonName, utf8("job")), organization];
    assert_eq!(
        why(daemon
            .over_tls(&named(&daemon.authority, &turned))
            .await
            .open("")
            .await),
        denied()
    );
    daemon.stop().await;
}

#[tokio::test]
async fn subject_in_another_form_is_refused_at_start_with_its_line() {
    for subject in [
        "O=Admins, CN=job",
        "CN = job",
        "/O=Admins/CN=job",
        "CN=\"job\"",
        "cn=job",
        "uid=job",
        "subject=CN=job",
        "CN=job,",
        "job",
        "CN=\\FF",
        "CN=#0C05",
    ] {
        let (folder, _) = prepare(
            &(rule("local", "*", "observer") + &rule(&format!("subject:{subject}"), "*", "worker")),
        );
        for check in [true, false] {
            let mut command = Command::new(env!("CARGO_BIN_EXE_tls-sessiond"));
            match check {
                true => command.arg("check"),
                false => command.arg("--config"),
            };
            command
                .arg(folder.path().join("daemon.toml"))
                .env_remove("RUST_LOG");
            let output = command.output().await.unwrap();
            assert_eq!(output.status.code(), Some(78), "{subject}");
            let written = String::from_utf8([output.stderr, output.stdout].concat()).unwrap();
            // Lines 1 to 6 are [listen] and [listen.tls], and each rule has four lines.
            assert!(
                written.contains("daemon.toml:12: access[1].identity: `subject:"),
                "{subject}: {written}"
            );
            assert!(
                written.contains("openssl x509 -noout -subject -nameopt RFC2253"),
                "{subject}: {written}"
            );
        }
    }
}

#[tokio::test]
async fn owners_of_different_kinds_do_not_collide() {
    let rules =
        rule("subject:CN=a://b", "*", "worker") + &rule("uri:subject:CN=a://b", "*", "worker");
    let daemon = Running::with(&rules).await;
    let subject = named(&daemon.authority, &[(DnType::CommonName, utf8("a://b"))]);
    let uri = daemon.authority.sign(&[], |params| {
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.subject_alt_names = vec![SanType::URI("subject:CN=a://b".try_into().unwrap())];
    });
    let [mut one, mut other] = [daemon.over_tls(&subject).await, daemon.over_tls(&uri).await];
    let (ones, others) = (one.open("").await.unwrap(), other.open("").await.unwrap());
    assert_eq!(daemon.owner(ones.clone()).await, "subject:CN=a://b");
    assert_eq!(daemon.owner(others.clone()).await, "uri:subject:CN=a://b");
    for (guest, foreign) in [(&mut one, &others), (&mut other, &ones)] {
        let request = pb::FreeRequest {
            connection_id: foreign.clone(),
            allow_missing: false,
        };
        assert_eq!(why(guest.connections.free(request).await), not_there());
    }
    daemon.stop().await;
}
