use proptest::prelude::*;

use super::*;

fn parse(text: &str) -> DistinguishedName {
    DistinguishedName::parse(text).unwrap_or_else(|err| panic!("{text}: {err}"))
}

/// Encodes a Name in DER with these attributes, RDN by RDN.
fn der(rdns: &[&[(&str, u8, &[u8])]]) -> Vec<u8> {
    let attribute = |(oid, tag, content): &(&str, u8, &[u8])| {
        let oid = encoded(OBJECT_IDENTIFIER, &Oid::parse(oid).unwrap().0);
        encoded(SEQUENCE, &[oid, encoded(*tag, content)].concat())
    };
    let sets = rdns
        .iter()
        .map(|rdn| encoded(SET, &rdn.iter().flat_map(attribute).collect::<Vec<_>>()));
    encoded(SEQUENCE, &sets.flatten().collect::<Vec<_>>())
}

fn named(rdns: &[&[(&str, u8, &[u8])]]) -> DistinguishedName {
    DistinguishedName::from_der(&der(rdns)).unwrap()
}

const CN: &str = "2.5.4.3";
const O: &str = "2.5.4.10";

#[test]
fn one_attribute_is_not_two() {
    let one = named(&[&[(O, UTF8_STRING, b"Admins, CN=job")]]);
    let two = named(&[&[(CN, UTF8_STRING, b"job")], &[(O, UTF8_STRING, b"Admins")]]);
    assert_eq!(
        (one.to_string(), two.to_string()),
        ("O=Admins\\, CN=job".into(), "O=Admins,CN=job".into())
    );
    assert_eq!(parse("O=Admins\\, CN=job"), one);
    assert_eq!(parse("O=Admins,CN=job"), two);
}

#[test]
fn order_matters_between_rdns_and_not_within_one() {
    let (a, b) = ((CN, UTF8_STRING, &b"a"[..]), (O, UTF8_STRING, &b"b"[..]));
    assert_eq!(named(&[&[a, b]]), named(&[&[b, a]]));
    assert_eq!(parse("O=b+CN=a"), named(&[&[a, b]]));
    assert_eq!(parse("CN=a+O=b").to_string(), "CN=a+O=b");
    assert_ne!(named(&[&[a], &[b]]), named(&[&[b], &[a]]));
    assert_ne!(named(&[&[a], &[b]]), named(&[&[a, b]]));
    assert_eq!(parse("O=b,CN=a"), named(&[&[a], &[b]]));
    assert_ne!(parse("CN=a+CN=a"), parse("CN=a"));
}

#[test]
fn string_types_compare_by_their_characters() {
    let name = parse("CN=jé");
    for (tag, content) in [
        (UTF8_STRING, &b"j\xc3\xa9"[..]),
        (TELETEX_STRING, b"j\xe9"),
        (BMP_STRING, b"\0j\0\xe9"),
        (UNIVERSAL_STRING, b"\0\0\0j\0\0\0\xe9"),
    ] {
        assert_eq!(named(&[&[(CN, tag, content)]]), name, "{tag:#x}");
    }
    for tag in [NUMERIC_STRING, PRINTABLE_STRING, IA5_STRING, VISIBLE_STRING] {
        assert_eq!(named(&[&[(CN, tag, b"job")]]), parse("CN=job"), "{tag:#x}");
    }
    assert_eq!(name.to_string(), "CN=j\\C3\\A9");
    // Neither case nor spaces are folded, and characters are not composed.
    for other in ["CN=Job", "CN=j ob", "CN=job\\ ", "CN=jo\u{301}b"] {
        assert_ne!(parse(other), parse("CN=job"));
    }
}

#[test]
fn malformed_strings_are_compared_as_they_are() {
    for (tag, content) in [
        (UTF8_STRING, &b"\xff"[..]),
        (PRINTABLE_STRING, b"\xe9"),
        (IA5_STRING, b"\x80"),
        (BMP_STRING, b"\xd8\0"),
        (BMP_STRING, b"\0"),
        (UNIVERSAL_STRING, b"\0\x11\0\0"),
        (0x03, b"\0a"),
        (0x2c, b"\x0c\x01a"),
    ] {
        let name = named(&[&[(CN, tag, content)]]);
        assert_eq!(name.0[0][0].value, Value::Encoded(encoded(tag, content)));
        assert!(name.to_string().starts_with("CN=#"), "{name}");
        assert_eq!(parse(&name.to_string()), name);
    }
}

#[test]
fn escapes_are_those_of_rfc_4514() {
    for (text, value) in [
        (r#"CN=\,\+\"\\\<\>\;"#, ",+\"\\<>;"),
        (r"CN=\#a", "#a"),
        (r"CN=a#", "a#"),
        (r"CN=\ a\ ", " a "),
        (r"CN=\ ", " "),
        (r"CN=a b", "a b"),
        (r"CN=a=b\=c", "a=b=c"),
        (r"CN=\C3\a9", "é"),
        (r"CN=\00\0A", "\0\n"),
        (r"CN=\20a\20", " a "),
        (r"CN=", ""),
        (r"CN=#0C036A6f62", "job"),
        (r"CN=#13036A6F62", "job"),
        (r"CN=#0C81036A6F62", "job"),
        (r"2.5.4.3=job", "job"),
        ("CN=é\u{10ffff}", "é\u{10ffff}"),
    ] {
        let name = parse(text);
        assert_eq!(name.0[0][0].value, Value::Text(value.into()), "{text}");
        assert_eq!(parse(&name.to_string()), name, "{text}");
    }
    assert_eq!(
        parse("1.3.6.1.4.1.99999.1=#0C0161").to_string(),
        "1.3.6.1.4.1.99999.1=#0C0161"
    );
    assert_eq!(
        parse("1.3.6.1.4.1.99999.1=#130161").to_string(),
        "1.3.6.1.4.1.99999.1=#0C0161"
    );
}

#[test]
fn other_forms_are_refused() {
    for text in [
        "O=Admins, CN=job",
        "CN = job",
        "CN= job",
        "CN=job ",
        "CN=job,",
        ",CN=job",
        "CN=job,,O=a",
        "CN=job+",
        "/CN=job/O=a",
        "subject=CN=job",
        "cn=job",
        "uid=job",
        "OID.2.5.4.3=job",
        "CN=\"job\"",
        "CN=a;O=b",
        "CN=<a>",
        "CN=a\0",
        r"CN=\zz",
        r"CN=\4",
        "CN=\\é",
        r"CN=\",
        r"CN=\FF",
        "CN=#",
        "CN=#0",
        "CN=#0C",
        "CN=#0C02",
        "CN=#0C016162",
        "CN=#0C8061",
        "CN=#1F2A0161",
        "CN=#0C0161 ",
        "CN",
        "=job",
        "3.1=job",
        "1.40=job",
        "1=job",
        "2.05=job",
        "2.5.=job",
        "2.340282366920938463463374607431768211456=job",
        "2.340282366920938463463374607431768211455=job",
    ] {
        assert!(DistinguishedName::parse(text).is_err(), "{text}");
    }
}

#[test]
fn malformed_der_is_no_name() {
    let good = der(&[&[(CN, UTF8_STRING, b"job")]]);
    for length in 0..good.len() {
        assert_eq!(
            DistinguishedName::from_der(&good[..length]),
            None,
            "{length}"
        );
    }
    assert_eq!(
        DistinguishedName::from_der(&[&good[..], &[0]].concat()),
        None
    );
    let with_oid = |oid: &[u8]| {
        let pair = [encoded(OBJECT_IDENTIFIER, oid), encoded(UTF8_STRING, b"a")].concat();
        let name = encoded(SEQUENCE, &encoded(SET, &encoded(SEQUENCE, &pair)));
        DistinguishedName::from_der(&name)
    };
    assert!(with_oid(&[0x55, 4, 3]).is_some());
    // A number that is padded, one that is cut off, none, and one of more than 128 bits.
    let long = [&[0x84][..], &[0x80; 17], &[0]].concat();
    for oid in [&[0x55, 0x80, 4][..], &[0x55, 0x84], &[], &long] {
        assert_eq!(with_oid(oid), None, "{oid:x?}");
    }
    let longest = [&[0x83][..], &[0xff; 17], &[0x7f]].concat();
    let name = with_oid(&[&[0x69][..], &longest].concat()).unwrap();
    assert!(
        name.to_string()
            .starts_with(&format!("2.25.{}=", u128::MAX)),
        "{name}"
    );
    assert_eq!(parse(&name.to_string()), name);
    assert_eq!(
        DistinguishedName::from_der(&encoded(SEQUENCE, &encoded(SET, b""))),
        None
    );
    assert!(
        DistinguishedName::from_der(&encoded(SEQUENCE, b""))
            .unwrap()
            .is_empty()
    );
}

fn names() -> impl Strategy<Value = Vec<u8>> {
    let oids = prop::sample::select(vec![CN, O, "2.25.7", UNIQUE_IDENTIFIER, "1.2.3"]);
    let tags = prop::sample::select(vec![
        UTF8_STRING,
        PRINTABLE_STRING,
        TELETEX_STRING,
        BMP_STRING,
        0x03,
    ]);
    let contents = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..6),
        prop::collection::vec(prop::sample::select(b" #,+\\=a\"\0".to_vec()), 0..4),
        prop::collection::vec(any::<u8>(), 126..300),
    ];
    let rdn = prop::collection::vec((oids, tags, contents), 1..4);
    prop::collection::vec(rdn, 0..4).prop_map(|rdns| {
        let rdns: Vec<Vec<_>> = rdns
            .iter()
            .map(|rdn| {
                rdn.iter()
                    .map(|(oid, tag, content)| (*oid, *tag, &content[..]))
                    .collect()
            })
            .collect();
        der(&rdns.iter().map(|rdn| &rdn[..]).collect::<Vec<_>>())
    })
}

proptest! {
    #[test]
    fn printed_names_parse_back_and_differ_if_names_differ(a in names(), b in names()) {
        let (a, b) = (DistinguishedName::from_der(&a).unwrap(), DistinguishedName::from_der(&b).unwrap());
        prop_assert_eq!(&parse(&a.to_string()), &a);
        prop_assert_eq!(a.to_string() == b.to_string(), a == b);
    }

    #[test]
    fn no_text_and_no_bytes_panic(text in "[A-Z0-9a-f=,+\\\\# .\"é]{0,40}", bytes: Vec<u8>) {
        if let Ok(name) = DistinguishedName::parse(&text) {
            prop_assert_eq!(parse(&name.to_string()), name);
        }
        drop(DistinguishedName::from_der(&bytes));
    }
}
