//! Broken or swapped files of keys and certificates: each is refused with the configuration key and
//! the cause, and no output contains a byte of a private key.

use std::{
    collections::HashSet,
    fs,
    io::Write,
    os::unix::{fs::symlink, process::ExitStatusExt},
    path::Path,
    process::{Command, Output, Stdio},
};

use openssl::{pkcs12::Pkcs12, pkey::PKey, rsa::Rsa, symm::Cipher, x509::X509};
use rustix::fs::{CWD, FileType, Mode, mknodat};
use tempfile::TempDir;

use crate::{
    pki::{Authority, Leaf},
    shrunk::{Reloading, taken},
};

/// A configuration that names a file for every key that takes one.
const CONFIG: &str = r#"[listen.tls]
certificate = "server.crt"
key = "server.key"
client_ca = "workers.pem"

[[access]]
identity = "local"
contexts = ["*"]
role = "admin"

[[context]]
name = "default"
certificate = "tls.crt"
key = "tls.key"
ca = "ca.pem"
client_certificates = [{ certificate = "client.crt", key = "client.key" }]
"#;

/// Each key of [`CONFIG`], its line and its file.
const KEYS: [(&str, usize, &str); 3] = [
    ("listen.tls.key", 3, "server.key"),
    ("context[0].key", 14, "tls.key"),
    ("context[0].client_certificates[0].key", 16, "client.key"),
];
const CERTIFICATES: [(&str, usize, &str); 5] = [
    ("listen.tls.certificate", 2, "server.crt"),
    ("listen.tls.client_ca", 4, "workers.pem"),
    ("context[0].certificate", 13, "tls.crt"),
    ("context[0].ca", 15, "ca.pem"),
    (
        "context[0].client_certificates[0].certificate",
        16,
        "client.crt",
    ),
];

/// The kind of file that replaces a good one.
enum Form {
    Bytes(Vec<u8>),
    Fifo,
    Folder,
    Device,
    Long,
}

struct Broken {
    name: &'static str,
    form: Form,
    /// A part of the error where a key is expected.
    said: &'static str,
}

impl Broken {
    /// Replaces the file at this path.
    fn write(&self, path: &Path) {
        match fs::remove_file(path) {
            Err(_) if path.is_dir() => fs::remove_dir(path).unwrap(),
            removed => removed.unwrap(),
        }
        match &self.form {
            Form::Bytes(bytes) => fs::write(path, bytes).unwrap(),
            Form::Fifo => mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap(),
            Form::Folder => fs::create_dir(path).unwrap(),
            Form::Device => symlink("/dev/zero", path).unwrap(),
            Form::Long => fs::File::create(path).unwrap().set_len(17 << 20).unwrap(),
        }
    }
}

fn restore(path: &Path, bytes: &[u8]) {
    if path.is_dir() {
        fs::remove_dir(path).unwrap();
    } else {
        fs::remove_file(path).unwrap();
    }
    fs::write(path, bytes).unwrap();
}

/// A folder of good files, the leaf whose key is in the broken files, and the broken files.
struct Samples {
    folder: TempDir,
    leaf: Leaf,
    broken: Vec<Broken>,
}

fn samples() -> Samples {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new("test");
    for name in ["server", "tls", "client"] {
        authority.leaf(&["localhost"]).write(folder.path(), name);
    }
    for name in ["ca.pem", "workers.pem"] {
        fs::write(folder.path().join(name), &authority.pem).unwrap();
    }
    fs::write(folder.path().join("daemon.toml"), CONFIG).unwrap();
    let leaf = authority.leaf(&["localhost"]);
    let broken = broken(&leaf);
    Samples {
        folder,
        leaf,
        broken,
    }
}

fn broken(leaf: &Leaf) -> Vec<Broken> {
    let pem = &leaf.key;
    let key = PKey::private_key_from_pem(pem.as_bytes()).unwrap();
    let certificate = X509::from_pem(leaf.chain.as_bytes()).unwrap();
    let rsa = PKey::from_rsa(Rsa::generate(2048).unwrap()).unwrap();
    let der = key.private_key_to_pkcs8().unwrap();
    let ec = String::from_utf8(key.ec_key().unwrap().private_key_to_pem().unwrap()).unwrap();
    let p12 = Pkcs12::builder()
        .name("a")
        .pkey(&key)
        .cert(&certificate)
        .build2("")
        .unwrap()
        .to_der()
        .unwrap();
    let lines: Vec<_> = pem.lines().collect();
    let [begin, body @ .., end] = lines.as_slice() else {
        panic!("{pem}")
    };
    let utf16 = |mark: [u8; 2], of: fn(u16) -> [u8; 2]| {
        mark.into_iter()
            .chain(pem.encode_utf16().flat_map(of))
            .collect::<Vec<_>>()
    };
    let text = |name, text: String, said| Broken {
        name,
        form: Form::Bytes(text.into_bytes()),
        said,
    };
    let bytes = |name, bytes: Vec<u8>, said| Broken {
        name,
        form: Form::Bytes(bytes),
        said,
    };
    let file = |name, form, said| Broken { name, form, said };
    let without = |line: usize| {
        let kept = lines.iter().enumerate().filter(|(place, _)| *place != line);
        kept.map(|(_, line)| format!("{line}\n"))
            .collect::<String>()
    };
    let relabelled = |label: &str| pem.replace("PRIVATE KEY", label);
    let last = lines.len() - 1;
    vec![
        text("one line", pem.replace('\n', ""), "the line ends are lost"),
        text(
            "one line of RSA",
            String::from_utf8(rsa.private_key_to_pem_pkcs8().unwrap())
                .unwrap()
                .replace('\n', ""),
            "the line ends are lost",
        ),
        text(
            "blanks for line ends",
            pem.replace('\n', " "),
            "the line ends are lost",
        ),
        text(
            "body on the line of BEGIN",
            pem.replacen('\n', "", 1),
            "the line ends are lost",
        ),
        text(
            "END on the line of the body",
            format!("{begin}\n{}{end}\n", body.concat()),
            "the line ends are lost",
        ),
        text(
            "literal \\n",
            pem.replace('\n', "\\n"),
            "two characters `\\n`",
        ),
        text(
            "literal \\r\\n",
            pem.replace('\n', "\\r\\n"),
            "two characters `\\n`",
        ),
        text(
            "quoted for JSON",
            format!("\"{}\"", pem.replace('\n', "\\n")),
            "two characters `\\n`",
        ),
        text(
            "literal \\n in the body",
            format!("{begin}\n{}\n{end}\n", body.join("\\n")),
            "no valid base64",
        ),
        text(
            "indented",
            pem.lines().map(|line| format!("  {line}\n")).collect(),
            "blanks before a BEGIN",
        ),
        text(
            "END indented",
            pem.replace("-----END", " -----END"),
            "blanks before a BEGIN",
        ),
        text("BOM", format!("\u{feff}{pem}"), "byte order mark"),
        bytes(
            "UTF-16 LE",
            utf16([0xff, 0xfe], u16::to_le_bytes),
            "is UTF-16",
        ),
        bytes(
            "UTF-16 BE",
            utf16([0xfe, 0xff], u16::to_be_bytes),
            "is UTF-16",
        ),
        bytes("DER", der.clone(), "is DER, not PEM"),
        bytes(
            "DER of RSA",
            rsa.private_key_to_pkcs8().unwrap(),
            "is DER, not PEM",
        ),
        bytes(
            "DER that was cut",
            der[..der.len() / 2].to_vec(),
            "is DER, not PEM",
        ),
        bytes("PKCS#12", p12, "PKCS#12"),
        text("base64 alone", body.concat(), "base64 outside of a block"),
        text(
            "body lines alone",
            body.join("\n"),
            "base64 outside of a block",
        ),
        bytes(
            "encrypted PKCS#8",
            key.private_key_to_pem_pkcs8_passphrase(Cipher::aes_128_cbc(), b"pass")
                .unwrap(),
            "encrypted private key; decrypt it",
        ),
        bytes(
            "encrypted, traditional",
            key.ec_key()
                .unwrap()
                .private_key_to_pem_passphrase(Cipher::aes_128_cbc(), b"pass")
                .unwrap(),
            "encrypted private key; decrypt it",
        ),
        text("without END", without(last), "is truncated"),
        text(
            "cut in the body",
            pem[..pem.len() / 2].to_owned(),
            "is truncated",
        ),
        text("cut in END", pem[..pem.len() - 10].to_owned(), "is damaged"),
        text("cut in BEGIN", pem[..20].to_owned(), "is damaged"),
        text("cut behind BEGIN", format!("{begin}\n"), "is truncated"),
        text(
            "without BEGIN",
            without(0),
            "does not belong to a BEGIN line",
        ),
        text(
            "without the first line of the body",
            without(1),
            "damaged or truncated",
        ),
        text(
            "without the last line of the body",
            without(last - 1),
            "damaged or truncated",
        ),
        text(
            "empty block",
            format!("{begin}\n{end}\n"),
            "no valid base64",
        ),
        text(
            "END of another kind",
            pem.replace("END PRIVATE", "END RSA PRIVATE"),
            "does not belong to a BEGIN line",
        ),
        text(
            "broken base64",
            pem.replace(body[0], &body[0].replace('A', "*")),
            "no valid base64",
        ),
        text(
            "padding in the middle",
            pem.replace(body[0], &format!("{}=\n", body[0])),
            "no valid base64",
        ),
        text(
            "public key",
            String::from_utf8(key.public_key_to_pem().unwrap()).unwrap(),
            "it holds a public key",
        ),
        text(
            "OpenSSH",
            relabelled("OPENSSH PRIVATE KEY"),
            "format of OpenSSH",
        ),
        text(
            "parameters alone",
            relabelled("EC PARAMETERS"),
            "parameters without a key",
        ),
        text(
            "unknown kind",
            relabelled("SECRET KEY"),
            "PEM block of another kind",
        ),
        text(
            "certificate's label",
            relabelled("CERTIFICATE"),
            "it holds a certificate",
        ),
        text("PKCS#8 as RSA", relabelled("RSA PRIVATE KEY"), ""),
        text(
            "RFC 4716",
            format!("---- BEGIN SSH2 PRIVATE KEY ----\n{}\n", body.concat()),
            "is damaged",
        ),
        bytes(
            "RSA of 1024 bits",
            PKey::from_rsa(Rsa::generate(1024).unwrap())
                .unwrap()
                .private_key_to_pem_pkcs8()
                .unwrap(),
            "the RSA key has 1024 bits",
        ),
        text("two keys", format!("{pem}{ec}"), "holds 2 private keys"),
        text(
            "key of another certificate",
            pem.clone(),
            "does not belong to the certificate",
        ),
        text("TOML", format!("key = \"\"\"\n{pem}\"\"\"\n"), ""),
        text("empty", String::new(), "is empty"),
        text("blank", "\n \r\n".to_owned(), "is empty"),
        text("hexadecimal", hex(&der), "is not PEM"),
        file("folder", Form::Folder, "is a folder"),
        file("named pipe", Form::Fifo, "is a named pipe"),
        file("device", Form::Device, "is a device"),
        file("too large", Form::Long, "is larger than"),
    ]
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The parts of secrets that no output may contain, as text, base64, hexadecimal or decimal.
#[derive(Default)]
struct Secrets {
    /// Every sequence of 12 characters of base64.
    text: HashSet<[u8; 12]>,
    /// Every sequence of six bytes.
    bytes: HashSet<[u8; 6]>,
}

impl Secrets {
    fn of(samples: &Samples) -> Self {
        let mut secrets = Self::default();
        for broken in &samples.broken {
            if let Form::Bytes(bytes) = &broken.form {
                secrets.add(bytes);
            }
        }
        let key = PKey::private_key_from_pem(samples.leaf.key.as_bytes()).unwrap();
        secrets.add(&key.private_key_to_pkcs8().unwrap());
        secrets
    }

    fn add(&mut self, bytes: &[u8]) {
        // The base64 in the text itself, and the base64 of the bytes from each of the three
        // alignments.
        let base64 = |byte: &u8| byte.is_ascii_alphanumeric() || b"+/=".contains(byte);
        for run in bytes
            .split(|byte| !base64(byte))
            .filter(|run| run.len() >= 24)
        {
            self.text.extend(parts::<12>(run));
        }
        for start in 0..3.min(bytes.len()) {
            self.text.extend(parts::<12>(
                openssl::base64::encode_block(&bytes[start..]).as_bytes(),
            ));
        }
        self.bytes.extend(parts::<6>(bytes));
    }

    /// Finds a part of a secret in an output. Returns its form and the part.
    fn find(&self, output: &str) -> Option<(&'static str, String)> {
        let shown = |part: &[u8]| String::from_utf8_lossy(part).into_owned();
        if let Some(part) = parts::<12>(output.as_bytes()).find(|part| self.text.contains(part)) {
            return Some(("base64", shown(&part)));
        }
        for part in parts::<12>(output.as_bytes()) {
            let byte = |place: usize| {
                u8::from_str_radix(std::str::from_utf8(&part[place..place + 2]).ok()?, 16).ok()
            };
            let decoded: Vec<_> = (0..12).step_by(2).map_while(byte).collect();
            if parts::<6>(&decoded).any(|bytes| self.bytes.contains(&bytes)) {
                return Some(("hexadecimal", shown(&part)));
            }
        }
        let words: Vec<_> = output
            .split(|c: char| !c.is_ascii_alphanumeric())
            .filter(|word| !word.is_empty())
            .collect();
        let hexadecimal = |word: &&str| {
            let digits = word
                .strip_prefix("0x")
                .or(word.strip_prefix('x'))
                .unwrap_or(word);
            u8::from_str_radix(digits, 16).ok()
        };
        for words in words.windows(6) {
            let decimal: Vec<u8> = words.iter().map_while(|word| word.parse().ok()).collect();
            let hex: Vec<u8> = words.iter().map_while(hexadecimal).collect();
            if [decimal, hex]
                .iter()
                .any(|bytes| parts::<6>(bytes).any(|bytes| self.bytes.contains(&bytes)))
            {
                return Some(("a list of numbers", words.join(", ")));
            }
        }
        None
    }

    fn assert_absent(&self, output: &str, what: &str) {
        assert!(self.text.len() > 1_000 && self.bytes.len() > 1_000);
        if let Some((form, part)) = self.find(output) {
            panic!("{what}: a part of a key is in the output, as {form}: {part}\n{output}");
        }
    }
}

fn parts<const N: usize>(bytes: &[u8]) -> impl Iterator<Item = [u8; N]> {
    bytes.windows(N).map(|part| part.try_into().unwrap())
}

#[test]
fn secret_search_finds_every_form_of_a_key() {
    let samples = samples();
    let secrets = Secrets::of(&samples);
    let key = PKey::private_key_from_pem(samples.leaf.key.as_bytes()).unwrap();
    let der = key.private_key_to_pkcs8().unwrap();
    let pem = samples.leaf.key.as_bytes();
    for bytes in [&der[40..60], &pem[40..60]] {
        let list = |make: fn(&u8) -> String, between: &str| {
            format!(
                "error: {}!",
                bytes.iter().map(make).collect::<Vec<_>>().join(between)
            )
        };
        for output in [
            format!("{bytes:?}"),
            format!("{bytes:x?}"),
            format!("{bytes:#04x?}"),
            list(u8::to_string, ","),
            list(u8::to_string, " "),
            list(|byte| format!("{byte:02x}"), ""),
            list(|byte| format!("{byte:02X}"), ""),
            list(|byte| format!("{byte:02x}"), ":"),
            list(|byte| format!("x{byte:02x}"), "\\"),
        ] {
            assert!(secrets.find(&output).is_some(), "{output}");
        }
    }
    assert!(
        secrets
            .find(&format!(
                "a {:?}",
                std::str::from_utf8(&pem[60..80]).unwrap()
            ))
            .is_some()
    );
    assert!(
        secrets
            .find(&openssl::base64::encode_block(&der[31..60]))
            .is_some()
    );
    assert_eq!(
        secrets.find("daemon.toml:3: listen.tls.key: server.key: is empty, 1 2 3 4 5 6"),
        None
    );
}

fn run(folder: &Path, args: &[&str]) -> Output {
    let command = &mut Command::new(env!("CARGO_BIN_EXE_tls-sessiond"));
    command
        .env_clear()
        .current_dir(folder)
        .args(args)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

fn text(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

/// Returns every broken file with every configuration key that can name it, the line and file of that key, and whether it
/// names a private key.
fn cases(samples: &Samples) -> Vec<(&Broken, &'static str, usize, &'static str, bool)> {
    let mut cases = Vec::new();
    for broken in &samples.broken {
        cases.extend(
            KEYS.iter()
                .map(|&(key, line, file)| (broken, key, line, file, true)),
        );
        cases.extend(
            CERTIFICATES
                .iter()
                .map(|&(key, line, file)| (broken, key, line, file, false)),
        );
    }
    cases
}

// Invariant 26.
#[test]
fn check_and_start_print_no_byte_of_a_key() {
    let samples = samples();
    let (folder, secrets) = (samples.folder.path(), Secrets::of(&samples));
    let good = run(folder, &["check", "daemon.toml"]);
    assert!(good.status.success(), "{}", text(&good));
    for (broken, key, line, file, is_key) in cases(&samples) {
        let path = folder.join(file);
        let before = fs::read(&path).unwrap();
        broken.write(&path);
        let mut outputs = vec![run(folder, &["check", "daemon.toml"])];
        // A start reads the files with the same code. Still, each key that names a private key is
        // tried.
        if is_key {
            outputs.push(run(
                folder,
                &[
                    "--config",
                    "daemon.toml",
                    "--set",
                    "listen.api=[\"tcp://127.0.0.1:0\"]",
                ],
            ));
        }
        restore(&path, &before);
        for output in outputs {
            let told = text(&output);
            let what = format!("{} as {key}", broken.name);
            assert_eq!(output.status.code(), Some(78), "{what}: {told}");
            assert!(
                told.contains(&format!("daemon.toml:{line}: {key}: ")),
                "{what}: {told}"
            );
            assert!(!is_key || told.contains(broken.said), "{what}: {told}");
            assert!(
                told.lines().count() == 1 && told.len() < 400,
                "{what}: {told}"
            );
            assert!(
                !told.contains("withheld"),
                "{what}: a plain error must not be withheld: {told}"
            );
            secrets.assert_absent(&told, &what);
        }
    }
}

// Invariant 26.
#[tokio::test]
async fn a_reload_logs_no_byte_of_a_key() {
    let samples = samples();
    let secrets = Secrets::of(&samples);
    let Samples {
        folder,
        leaf,
        broken,
    } = samples;
    let running = &mut Reloading::over(folder, CONFIG).await;
    let samples = Samples {
        folder: tempfile::tempdir().unwrap(),
        leaf,
        broken,
    };
    for (broken, key, line, file, is_key) in cases(&samples) {
        let path = running.folder.path().join(file);
        let before = fs::read(&path).unwrap();
        broken.write(&path);
        let told = running.hangup().await;
        restore(&path, &before);
        let what = format!("{} as {key}", broken.name);
        assert!(!taken(&told), "{what}: {told}");
        assert!(
            told.contains(&format!("daemon.toml:{line}: {key}: ")),
            "{what}: {told}"
        );
        // JSON escapes the backslash in some of these errors.
        assert!(
            !is_key || told.contains(&broken.said.replace('\\', "\\\\")),
            "{what}: {told}"
        );
    }
    assert!(
        taken(&running.hangup().await),
        "the restored files are loaded"
    );
    secrets.assert_absent(&fs::read_to_string(&running.log).unwrap(), "the log");
}

#[test]
fn a_certificate_in_the_place_of_a_key_is_named() {
    let samples = samples();
    let folder = samples.folder.path();
    for (key, line, file) in KEYS {
        let path = folder.join(file);
        let before = fs::read(&path).unwrap();
        fs::write(&path, &samples.leaf.chain).unwrap();
        let told = text(&run(folder, &["check", "daemon.toml"]));
        fs::write(&path, before).unwrap();
        let said = format!(
            "daemon.toml:{line}: {key}: {file}: holds no private key; it holds a certificate"
        );
        assert!(told.contains(&said), "{told}");
    }
    for (key, line, file) in CERTIFICATES {
        let path = folder.join(file);
        let before = fs::read(&path).unwrap();
        fs::write(&path, &samples.leaf.key).unwrap();
        let told = text(&run(folder, &["check", "daemon.toml"]));
        fs::write(&path, before).unwrap();
        let said = format!(
            "daemon.toml:{line}: {key}: {file}: holds no certificate; it holds a private key"
        );
        assert!(told.contains(&said), "{told}");
    }
}

#[test]
fn a_key_in_the_place_of_the_configuration_is_not_printed() {
    let samples = samples();
    let (folder, secrets) = (samples.folder.path(), Secrets::of(&samples));
    let mut tried = 0;
    for broken in &samples.broken {
        let Form::Bytes(bytes) = &broken.form else {
            continue;
        };
        fs::write(folder.join("tls.key"), bytes).unwrap();
        for args in [
            &["--config", "tls.key", "--set", "listen.api=[]"][..],
            &["check", "tls.key"],
        ] {
            let output = run(folder, args);
            secrets.assert_absent(&text(&output), broken.name);
            assert!(
                output.status.code().is_some_and(|code| code != 101),
                "{}: {}",
                broken.name,
                text(&output)
            );
            tried += 1;
        }
    }
    assert!(tried > 80);
}

// Invariant 26.
#[test]
fn a_key_in_the_place_of_a_value_is_not_printed() {
    let samples = samples();
    let (folder, secrets) = (samples.folder.path(), Secrets::of(&samples));
    let pem = &samples.leaf.key;
    let body: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
    let lines = pem
        .lines()
        .filter(|line| !line.starts_with('-'))
        .collect::<Vec<_>>()
        .join("\n");
    let values = [
        pem.clone(),
        pem.replace('\n', ""),
        pem.replace('\n', " "),
        pem.replace('\n', "\\n"),
        body,
        lines,
    ];
    let keys = [
        "listen.api",
        "listen.unix_mode",
        "listen.unix_owner",
        "listen.tls.certificate",
        "listen.tls.key",
        "listen.tls.client_ca",
        "limits.streams",
        "limits.message",
        "drain.timeout",
        "context.0.name",
        "context.0.certificate",
        "context.0.key",
        "context.0.ca",
        "context.0.client_auth",
        "context.0.versions",
        "context.0.tickets",
        "context.0.session_timeout",
        "context.0.cipher_suites",
        "context.0.key_exchange",
        "context.0.options",
        "context.0.client_certificates",
        "access.0.role",
        "access.0.identity",
        "access.0.contexts",
    ];
    let refused = |output: &Output, what: &str| {
        secrets.assert_absent(&text(output), what);
        assert!(
            matches!(output.status.code(), Some(2 | 78)),
            "{what}: {:?}: {}",
            output.status.signal(),
            text(output)
        );
    };
    for value in &values {
        for key in keys {
            let assignment = format!("{key}={value}");
            refused(
                &run(folder, &["check", "daemon.toml", "--set", &assignment]),
                key,
            );
            let list = format!("{key}=[{value:?}]");
            refused(&run(folder, &["check", "daemon.toml", "--set", &list]), key);
        }
        let name = "TLS_SESSIOND__LISTEN__TLS__KEY";
        let output = Command::new(env!("CARGO_BIN_EXE_tls-sessiond"))
            .env_clear()
            .env(name, value)
            .current_dir(folder)
            .args(["check", "daemon.toml"])
            .output();
        refused(&output.unwrap(), name);
        // The secret as the name of a configuration key, as a path, and in the file.
        refused(
            &run(folder, &["check", "daemon.toml", &format!("--set={value}")]),
            "--set",
        );
        refused(&run(folder, &["check", "--", value]), "check");
        for line in [
            format!("{value:?} = 1\n"),
            format!("tls = {value:?}\n"),
            format!("{value}\n"),
            format!("[{value:?}]\n"),
        ] {
            let mut file = fs::File::create(folder.join("other.toml")).unwrap();
            file.write_all(line.as_bytes()).unwrap();
            refused(&run(folder, &["check", "other.toml"]), &line);
        }
    }
}

#[test]
fn keys_of_all_common_forms_are_read() {
    let samples = samples();
    let folder = samples.folder.path();
    let Leaf { chain, key: pem } = &samples.leaf;
    let key = PKey::private_key_from_pem(pem.as_bytes()).unwrap();
    let ec = String::from_utf8(key.ec_key().unwrap().private_key_to_pem().unwrap()).unwrap();
    let parameters =
        "-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n";
    for (name, key, chain) in [
        ("unchanged", pem.clone(), chain.clone()),
        (
            "CR LF",
            pem.replace('\n', "\r\n"),
            chain.replace('\n', "\r\n"),
        ),
        ("CR", pem.replace('\n', "\r"), chain.replace('\n', "\r")),
        (
            "no line end at the end",
            pem.trim_end().to_owned(),
            chain.trim_end().to_owned(),
        ),
        (
            "blanks at line ends",
            pem.replace('\n', " \t\n"),
            chain.replace('\n', "  \n"),
        ),
        (
            "text around the blocks",
            format!("Bag Attributes\n    a: b\n{pem}# end\n"),
            format!("subject=a\n{chain}\n"),
        ),
        ("SEC1", ec.clone(), chain.clone()),
        (
            "parameters before the key",
            format!("{parameters}{ec}"),
            chain.clone(),
        ),
        (
            "both in one file",
            format!("{chain}{pem}"),
            format!("{pem}{chain}"),
        ),
        (
            "long lines",
            pem.lines()
                .map(|line| line.to_owned() + if line.starts_with('-') { "\n" } else { "" })
                .collect::<String>()
                .replace("-----END", "\n-----END"),
            chain.clone(),
        ),
    ] {
        fs::write(folder.join("tls.key"), key).unwrap();
        fs::write(folder.join("tls.crt"), chain).unwrap();
        let output = run(folder, &["check", "daemon.toml"]);
        assert!(output.status.success(), "{name}: {}", text(&output));
    }
}
