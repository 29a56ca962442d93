//! Self-description of the daemon: reflection, the comments in it, and health.

use std::collections::HashSet;

use prost::Message;
use prost_types::{DescriptorProto, EnumDescriptorProto, FileDescriptorProto, FileDescriptorSet};
use tls_sessiond_proto::FILE_DESCRIPTOR_SET;
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use crate::harness::TestDaemon;

const PACKAGE: &str = "tls.sessiond.v1";
const SERVICES: [&str; 6] = [
    "tls.sessiond.v1.AdminService",
    "tls.sessiond.v1.ConnectionService",
    "tls.sessiond.v1.ContextService",
    "tls.sessiond.v1.SessionService",
    "tls.sessiond.v1.TicketKeyService",
    "tls.sessiond.v1.WorkerService",
];

fn contract() -> Vec<FileDescriptorProto> {
    let all = FileDescriptorSet::decode(FILE_DESCRIPTOR_SET).unwrap();
    all.file
        .into_iter()
        .filter(|file| file.package() == PACKAGE)
        .collect()
}

/// Lists the services and fetches the file of each, over one version of the reflection protocol.
macro_rules! reflects {
    ($version:ident, $daemon:expr) => {{
        use tonic_reflection::pb::$version::{
            ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
            server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
        };
        let ask = async |wanted: MessageRequest| {
            let request = ServerReflectionRequest {
                host: String::new(),
                message_request: Some(wanted),
            };
            let mut answers = ServerReflectionClient::new($daemon.channel.clone())
                .server_reflection_info(tokio_stream::once(request))
                .await
                .unwrap()
                .into_inner();
            answers
                .message()
                .await
                .unwrap()
                .unwrap()
                .message_response
                .unwrap()
        };
        let MessageResponse::ListServicesResponse(listed) =
            ask(MessageRequest::ListServices(String::new())).await
        else {
            panic!("no list")
        };
        let names: HashSet<_> = listed
            .service
            .into_iter()
            .map(|service| service.name)
            .collect();
        for service in SERVICES.into_iter().chain(["grpc.health.v1.Health"]) {
            assert!(names.contains(service), "{service} is not in {names:?}");
            let MessageResponse::FileDescriptorResponse(files) =
                ask(MessageRequest::FileContainingSymbol(service.into())).await
            else {
                panic!("no file defines {service}")
            };
            let file = FileDescriptorProto::decode(&*files.file_descriptor_proto[0]).unwrap();
            assert!(
                file.source_code_info.is_some() || !service.starts_with(PACKAGE),
                "{service} has no comments"
            );
        }
        // grpcurl needs this to print the details of an error.
        let details = MessageRequest::FileContainingSymbol("google.rpc.ErrorInfo".into());
        assert!(matches!(
            ask(details).await,
            MessageResponse::FileDescriptorResponse(_)
        ));
    }};
}

#[tokio::test]
async fn both_versions_of_reflection_list_all_services() {
    let daemon = TestDaemon::start().await;
    reflects!(v1, daemon);
    reflects!(v1alpha, daemon);
    daemon.stop().await;
}

#[tokio::test]
async fn health_answers_for_the_daemon_and_each_service() {
    let daemon = TestDaemon::start().await;
    let mut health = HealthClient::new(daemon.channel.clone());
    for service in [""].into_iter().chain(SERVICES) {
        let request = HealthCheckRequest {
            service: service.into(),
        };
        let answer = health.check(request).await.unwrap().into_inner();
        assert_eq!(answer.status(), ServingStatus::Serving, "`{service}`");
    }
    let unknown = HealthCheckRequest {
        service: "tls.sessiond.v1.NoSuchService".into(),
    };
    assert_eq!(
        health.check(unknown).await.unwrap_err().code(),
        tonic::Code::NotFound
    );
    daemon.stop().await;
}

/// The paths of one file that have a leading comment, and the names of the elements that lack one.
struct Comments {
    file: String,
    written: HashSet<Vec<i32>>,
    missing: Vec<String>,
}

impl Comments {
    fn want(&mut self, path: &[i32], name: &str) {
        if !self.written.contains(path) {
            self.missing.push(format!("{}: {name}", self.file));
        }
    }

    fn message(&mut self, path: &[i32], scope: &str, message: &DescriptorProto) {
        let name = format!("{scope}.{}", message.name());
        self.want(path, &name);
        for (place, field) in message.field.iter().enumerate() {
            self.want(&below(path, 2, place), &format!("{name}.{}", field.name()));
        }
        for (place, nested) in message.nested_type.iter().enumerate() {
            self.message(&below(path, 3, place), &name, nested);
        }
        for (place, nested) in message.enum_type.iter().enumerate() {
            self.enumeration(&below(path, 4, place), &name, nested);
        }
        for (place, oneof) in message.oneof_decl.iter().enumerate() {
            self.want(&below(path, 8, place), &format!("{name}.{}", oneof.name()));
        }
    }

    fn enumeration(&mut self, path: &[i32], scope: &str, enumeration: &EnumDescriptorProto) {
        let name = format!("{scope}.{}", enumeration.name());
        self.want(path, &name);
        for (place, value) in enumeration.value.iter().enumerate() {
            self.want(&below(path, 2, place), &format!("{name}.{}", value.name()));
        }
    }
}

/// Returns the path of a child element, as SourceCodeInfo.Location.path of descriptor.proto has it:
/// field numbers and indexes in turn.
fn below(path: &[i32], field: i32, place: usize) -> Vec<i32> {
    let place = i32::try_from(place).unwrap();
    path.iter().copied().chain([field, place]).collect()
}

// Invariant 11.
#[test]
fn everything_in_the_contract_has_a_comment() {
    let files = contract();
    let services: usize = files.iter().map(|file| file.service.len()).sum();
    assert_eq!(
        (files.len(), services),
        (7, SERVICES.len()),
        "unexpected files or services in the contract"
    );
    let mut missing = Vec::new();
    for file in &files {
        let locations = file.source_code_info.iter().flat_map(|info| &info.location);
        let mut comments = Comments {
            file: file.name().into(),
            written: locations
                .filter(|location| !location.leading_comments().trim().is_empty())
                .map(|location| location.path.clone())
                .collect(),
            missing: Vec::new(),
        };
        for (place, message) in file.message_type.iter().enumerate() {
            comments.message(&below(&[], 4, place), PACKAGE, message);
        }
        for (place, enumeration) in file.enum_type.iter().enumerate() {
            comments.enumeration(&below(&[], 5, place), PACKAGE, enumeration);
        }
        for (place, service) in file.service.iter().enumerate() {
            let path = below(&[], 6, place);
            let name = format!("{PACKAGE}.{}", service.name());
            comments.want(&path, &name);
            for (place, method) in service.method.iter().enumerate() {
                comments.want(
                    &below(&path, 2, place),
                    &format!("{name}.{}", method.name()),
                );
            }
        }
        missing.append(&mut comments.missing);
    }
    assert!(
        missing.is_empty(),
        "elements without a comment:\n{}",
        missing.join("\n")
    );
}
