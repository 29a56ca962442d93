//! The contract as workers in other languages use it.

use std::{fs, path::Path};

use prost::Message;
use prost_types::FileDescriptorSet;
use tls_sessiond_proto::{self as pb, answer::Result as Answered, call::Method};
use tokio::process::Command;

use crate::{
    calls::worker,
    doors::Guest,
    harness::TestDaemon,
    process::{peer, run},
};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn protos_name_packages_for_go_java_and_csharp() {
    let all = FileDescriptorSet::decode(pb::FILE_DESCRIPTOR_SET).unwrap();
    let ours = all.file.iter().filter(|file| file.package() == "tls.sessiond.v1");
    let mut count = 0;
    for file in ours {
        let options = file.options.as_ref().expect("the file has options");
        let go = "github.com/tls-sessiond/tls-sessiond/gen/go/tls/sessiond/v1;sessiondv1";
        assert_eq!(options.go_package(), go, "{}", file.name());
        assert_eq!(options.java_package(), "io.github.tls_sessiond.v1");
        assert!(options.java_multiple_files());
        assert_eq!(options.csharp_namespace(), "TlsSessiond.V1");
        count += 1;
    }
    assert_eq!(count, 5);
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
    let go = folder.path().join("github.com/tls-sessiond/tls-sessiond/gen/go/tls/sessiond/v1");
    let service = fs::read_to_string(go.join("worker_service_grpc.pb.go")).unwrap();
    assert!(service.contains("\npackage sessiondv1\n"), "{service}");
    assert!(folder.path().join("io/github/tls_sessiond/v1/LookupSessionRequest.java").exists());
    assert!(fs::read_to_string(folder.path().join("Types.cs")).unwrap().contains("namespace TlsSessiond.V1"));
}

#[tokio::test]
async fn buf_finds_a_breaking_change_of_the_contract() {
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path();
    let (said, succeeded) =
        run(Command::new("cp").args(["-r", "proto", "buf.yaml"]).arg(copy).current_dir(root()), "").await;
    assert!(succeeded, "{said}");
    let breaking = || {
        let mut command = peer("buf");
        command.args(["breaking", "--against"]).arg(root().join("proto/v1.binpb")).current_dir(copy);
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
        ("option go_package = \"github.com/", "option go_package = \"example.org/"),
    ] {
        assert!(text.contains(before), "{before}");
        fs::write(&types, text.replacen(before, after, 1)).unwrap();
        let (said, succeeded) = run(&mut breaking(), "").await;
        assert!(!succeeded && said.contains("types.proto:"), "{after}: {said}");
    }
}

#[tokio::test]
async fn shutdown_of_a_worker_connection_without_a_session_is_a_close() {
    let daemon = TestDaemon::start().await;
    let mut rpc = daemon.connections();
    let made = rpc.new_connection(worker(pb::Role::Server)).await.unwrap().into_inner().connection.unwrap();
    let shutdown = pb::ShutdownRequest { connection_id: made.id.clone() };
    for expected in [pb::ShutdownStatus::Sent, pb::ShutdownStatus::WantRead] {
        let answer = rpc.shutdown(shutdown.clone()).await.unwrap().into_inner();
        assert_eq!((answer.status(), answer.ciphertext.len()), (expected, 0));
    }
    // A session stored after the Shutdown belongs to a handshake that began later. That one was not
    // closed.
    let put = crate::calls::put(&made.id, "5e55");
    let put = daemon.sessions().put_session(put).await.unwrap().into_inner();
    assert!(put.session.is_some(), "{put:?}");
    rpc.free(pb::FreeRequest { connection_id: made.id, allow_missing: false }).await.unwrap();
    let found = daemon.sessions().lookup_session(crate::calls::lookup("5e55")).await.unwrap().into_inner();
    assert!(!found.found, "{found:?}");
    daemon.stop().await;
}

#[tokio::test]
async fn error_of_a_call_without_answer_names_the_call() {
    let daemon = TestDaemon::start().await;
    let mut attached = Guest::new(&daemon.channel).attach().await;
    let shutdown = pb::SetShutdownRequest { connection_id: "@gone".into(), ..Default::default() };
    let calls = [
        (0, Method::SetShutdown(shutdown), "", ("set_shutdown", "", "@gone")),
        (0, Method::New(Box::new(worker(pb::Role::Unspecified))), "@a", ("new", "@a", "")),
        (0, Method::LookupSession(Box::default()), "", ("lookup_session", "", "")),
        (7, Method::LookupSession(Box::default()), "", ("", "", "")),
    ];
    for (id, method, alias, (name, of_alias, of_connection)) in calls {
        let answer = attached.answer(pb::Call { id, method: Some(method), alias: alias.into() }).await;
        let Some(Answered::Error(error)) = answer.result else { panic!("{answer:?}") };
        assert_ne!(error.reason, "");
        assert_eq!(
            (answer.id, error.method.as_str(), error.alias.as_str(), error.connection_id.as_str()),
            (id, name, of_alias, of_connection),
        );
    }
    drop(attached);
    daemon.stop().await;
}
