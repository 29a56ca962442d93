//! The contract as workers in other languages use it.

use prost::Message;
use prost_types::FileDescriptorSet;
use tls_sessiond_proto::{self as pb, answer::Result as Answered, call::Method};

use crate::{calls::worker, doors::Guest, harness::TestDaemon};

#[test]
fn protos_name_packages_for_go_java_and_csharp() {
    let all = FileDescriptorSet::decode(pb::FILE_DESCRIPTOR_SET).unwrap();
    let ours = all
        .file
        .iter()
        .filter(|file| file.package() == "tls.sessiond.v1");
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
    assert_eq!(count, 7);
}

#[tokio::test]
async fn shutdown_of_a_worker_connection_without_a_session_is_a_close() {
    let daemon = TestDaemon::start().await;
    let mut rpc = daemon.connections();
    let made = rpc
        .new_connection(worker(pb::Role::Server))
        .await
        .unwrap()
        .into_inner()
        .connection
        .unwrap();
    let shutdown = pb::ShutdownRequest {
        connection_id: made.id.clone(),
    };
    for expected in [pb::ShutdownStatus::Sent, pb::ShutdownStatus::WantRead] {
        let answer = rpc.shutdown(shutdown.clone()).await.unwrap().into_inner();
        assert_eq!((answer.status(), answer.ciphertext.len()), (expected, 0));
    }
    // A session stored after the Shutdown belongs to a handshake that began later. That one was not
    // closed.
    let put = crate::calls::put(&made.id, "5e55");
    let put = daemon
        .sessions()
        .put_session(put)
        .await
        .unwrap()
        .into_inner();
    assert!(put.session.is_some(), "{put:?}");
    rpc.free(pb::FreeRequest {
        connection_id: made.id,
        allow_missing: false,
    })
    .await
    .unwrap();
    let found = daemon
        .sessions()
        .lookup_session(crate::calls::lookup("5e55"))
        .await
        .unwrap()
        .into_inner();
    assert!(!found.found, "{found:?}");
    daemon.stop().await;
}

#[tokio::test]
async fn error_of_a_call_without_answer_names_the_call() {
    let daemon = TestDaemon::start().await;
    let mut attached = Guest::new(&daemon.channel).attach().await;
    let shutdown = pb::SetShutdownRequest {
        connection_id: "@gone".into(),
        ..Default::default()
    };
    let calls = [
        (
            0,
            Method::SetShutdown(shutdown),
            "",
            ("set_shutdown", "", "@gone"),
        ),
        (
            0,
            Method::New(Box::new(worker(pb::Role::Unspecified))),
            "@a",
            ("new", "@a", ""),
        ),
        (
            0,
            Method::LookupSession(Box::default()),
            "",
            ("lookup_session", "", ""),
        ),
        (7, Method::LookupSession(Box::default()), "", ("", "", "")),
    ];
    for (id, method, alias, (name, of_alias, of_connection)) in calls {
        let answer = attached
            .answer(pb::Call {
                id,
                method: Some(method),
                alias: alias.into(),
            })
            .await;
        let Some(Answered::Error(error)) = answer.result else {
            panic!("{answer:?}")
        };
        assert_ne!(error.reason, "");
        assert_eq!(
            (
                answer.id,
                error.method.as_str(),
                error.alias.as_str(),
                error.connection_id.as_str()
            ),
            (id, name, of_alias, of_connection),
        );
    }
    drop(attached);
    daemon.stop().await;
}
