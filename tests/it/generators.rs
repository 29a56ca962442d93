//! The contract as the code generators of other languages and buf take it.

use std::{fs, path::Path};

use tokio::process::Command;

use crate::process::{peer, run};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

#[tokio::test]
async fn go_java_and_csharp_generators_accept_the_protos() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().display();
    let mut command = Command::new("protoc");
    command.arg("--proto_path=proto").current_dir(root()).args([
        format!("--go_out={out}"),
        format!("--go-grpc_out={out}"),
        format!("--java_out={out}"),
        format!("--csharp_out={out}"),
    ]);
    for file in fs::read_dir(root().join("proto/tls/sessiond/v1")).unwrap() {
        command.arg(Path::new("tls/sessiond/v1").join(file.unwrap().file_name()));
    }
    let (said, succeeded) = run(&mut command, "").await;
    assert!(succeeded, "{said}");
    let go = folder
        .path()
        .join("github.com/tls-sessiond/tls-sessiond/gen/go/tls/sessiond/v1");
    let service = fs::read_to_string(go.join("worker_service_grpc.pb.go")).unwrap();
    assert!(service.contains("\npackage sessiondv1\n"), "{service}");
    assert!(
        folder
            .path()
            .join("io/github/tls_sessiond/v1/LookupSessionRequest.java")
            .exists()
    );
    assert!(
        fs::read_to_string(folder.path().join("Types.cs"))
            .unwrap()
            .contains("namespace TlsSessiond.V1")
    );
}

#[tokio::test]
async fn buf_finds_a_breaking_change_of_the_contract() {
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path();
    let (said, succeeded) = run(
        Command::new("cp")
            .args(["-r", "proto", "buf.yaml"])
            .arg(copy)
            .current_dir(root()),
        "",
    )
    .await;
    assert!(succeeded, "{said}");
    let breaking = || {
        let mut command = peer("buf");
        command
            .args(["breaking", "--against"])
            .arg(root().join("proto/v1.binpb"))
            .current_dir(copy);
        command
    };
    assert_eq!(
        run(&mut breaking(), "").await,
        (String::new(), true),
        "the contract is compatible with the stored image"
    );
    let types = copy.join("proto/tls/sessiond/v1/types.proto");
    let text = fs::read_to_string(&types).unwrap();
    for (before, after) in [
        ("string owner =", "bytes owner ="),
        ("MISS_REASON_HOLDER_LOST = 8", "MISS_REASON_HOLDER_LOST = 9"),
        (
            "option go_package = \"github.com/",
            "option go_package = \"example.org/",
        ),
    ] {
        assert!(text.contains(before), "{before}");
        fs::write(&types, text.replacen(before, after, 1)).unwrap();
        let (said, succeeded) = run(&mut breaking(), "").await;
        assert!(
            !succeeded && said.contains("types.proto:"),
            "{after}: {said}"
        );
    }
}
