//! Implements grpc.reflection.v1 and v1alpha: describes the API to grpcurl and other tools.
//!
//! A stream answers each request as it reads it, without a task. A request that cannot be answered
//! gets an `error_response`, and the stream goes on.

use std::{
    collections::{BTreeSet, HashMap},
    future::Future,
    pin::Pin,
    sync::{Arc, LazyLock},
    task::{Context, Poll},
};

use prost::Message;
use prost_types::{DescriptorProto, EnumDescriptorProto, FileDescriptorProto, FileDescriptorSet};
use tls_sessiond_proto::transport::wake::PollOnWake;
use tokio_stream::Stream;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::{Code, Request, Response, Status, Streaming, async_trait};

use super::error::described;

/// The descriptors of all services, and of all types that their messages use.
const SETS: [&[u8]; 6] = [
    tls_sessiond_proto::FILE_DESCRIPTOR_SET,
    tls_sessiond_proto::envoy::FILE_DESCRIPTOR_SET,
    tonic_health::pb::FILE_DESCRIPTOR_SET,
    tonic_types::pb::FILE_DESCRIPTOR_SET,
    tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
    tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
];

/// The index of all descriptors, built at the first request. Building it takes longer than
/// everything else at the start of the daemon, and the tests start hundreds of daemons.
static INDEX: LazyLock<Index> = LazyLock::new(|| {
    let mut index = Index::default();
    for set in SETS {
        let set = FileDescriptorSet::decode(set)
            .expect("the descriptors are built in, and a test reads them");
        set.file.iter().for_each(|file| index.add(file));
    }
    index
});

/// Files by their own names and by the names of the symbols that they define.
#[derive(Default)]
struct Index {
    services: BTreeSet<String>,
    files: HashMap<String, Vec<u8>>,
    symbols: HashMap<String, Symbol>,
}

struct Symbol {
    file: Arc<str>,
    is_message: bool,
}

impl Index {
    fn add(&mut self, file: &FileDescriptorProto) {
        if self.files.contains_key(file.name()) {
            return;
        }
        self.files
            .insert(file.name().to_owned(), file.encode_to_vec());
        let (name, package) = (Arc::from(file.name()), file.package());
        for message in &file.message_type {
            self.message(&name, package, message);
        }
        for of_one in &file.enum_type {
            self.enumeration(&name, package, of_one);
        }
        for service in &file.service {
            let service_name = within(package, service.name());
            for method in &service.method {
                self.symbol(&name, within(&service_name, method.name()), false);
            }
            self.symbol(&name, service_name.clone(), false);
            self.services.insert(service_name);
        }
    }

    fn message(&mut self, file: &Arc<str>, scope: &str, message: &DescriptorProto) {
        let name = within(scope, message.name());
        for field in &message.field {
            self.symbol(file, within(&name, field.name()), false);
        }
        for choice in &message.oneof_decl {
            self.symbol(file, within(&name, choice.name()), false);
        }
        for nested in &message.nested_type {
            self.message(file, &name, nested);
        }
        for nested in &message.enum_type {
            self.enumeration(file, &name, nested);
        }
        self.symbol(file, name, true);
    }

    /// Adds an enum and its values. The scope of a value is the scope of its enum, not the enum
    /// itself.
    fn enumeration(&mut self, file: &Arc<str>, scope: &str, of_one: &EnumDescriptorProto) {
        for value in &of_one.value {
            self.symbol(file, within(scope, value.name()), false);
        }
        self.symbol(file, within(scope, of_one.name()), false);
    }

    fn symbol(&mut self, file: &Arc<str>, name: String, is_message: bool) {
        self.symbols.insert(
            name,
            Symbol {
                file: Arc::clone(file),
                is_message,
            },
        );
    }

    fn answer(&self, asked: Asked) -> Result<Answered, (Code, String)> {
        let file = |name: &str| self.files.get(name).cloned().map(Answered::File);
        match asked {
            Asked::File(name) => file(&name).ok_or_else(|| missing("file", &name)),
            Asked::Symbol(name) => {
                let symbol = self.symbols.get(name.trim_start_matches('.'));
                symbol
                    .and_then(|symbol| file(&symbol.file))
                    .ok_or_else(|| missing("symbol", &name))
            }
            Asked::Extension(number) => Err(missing("extension", &number.to_string())),
            Asked::Extensions(name) => {
                match self
                    .symbols
                    .get(name.as_str())
                    .is_some_and(|symbol| symbol.is_message)
                {
                    true => Ok(Answered::NoExtensions(name)),
                    false => Err(missing("message", &name)),
                }
            }
            Asked::Services => Ok(Answered::Services(self.services.iter().cloned().collect())),
            Asked::Nothing => Err((Code::InvalidArgument, "message_request is required".into())),
        }
    }
}

fn within(scope: &str, name: &str) -> String {
    if scope.is_empty() {
        name.to_owned()
    } else {
        format!("{scope}.{name}")
    }
}

fn missing(kind: &str, name: &str) -> (Code, String) {
    let shown: String = name.chars().take(SHOWN).collect();
    (Code::NotFound, format!("no {kind} `{shown}`"))
}

/// How many characters of a name an error repeats.
const SHOWN: usize = 200;

enum Asked {
    File(String),
    Symbol(String),
    Extension(i32),
    Extensions(String),
    Services,
    Nothing,
}

enum Answered {
    File(Vec<u8>),
    /// The name of a message. No message has extensions.
    NoExtensions(String),
    Services(Vec<String>),
}

/// Implements both versions of the service.
#[derive(Clone)]
pub(crate) struct Reflection {
    draining: CancellationToken,
}

impl Reflection {
    /// Returns the service. Its streams end once `draining` is cancelled, because they would delay
    /// the stop.
    pub(crate) fn new(draining: CancellationToken) -> Self {
        Self { draining }
    }

    fn stream<Q, A>(&self, requests: Streaming<Q>, answer: fn(Q) -> A) -> Reflected<Q, A> {
        let draining = PollOnWake::new(Box::pin(self.draining.clone().cancelled_owned()));
        Reflected {
            requests,
            answer,
            draining,
        }
    }
}

/// The stream of answers to one stream of requests.
pub(crate) struct Reflected<Q, A> {
    requests: Streaming<Q>,
    answer: fn(Q) -> A,
    draining: PollOnWake<WaitForCancellationFutureOwned>,
}

impl<Q, A> Stream for Reflected<Q, A> {
    type Item = Result<A, Status>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        match Pin::new(&mut this.requests).poll_next(cx) {
            Poll::Ready(Some(Ok(request))) => Poll::Ready(Some(Ok((this.answer)(request)))),
            Poll::Ready(Some(Err(status))) => Poll::Ready(Some(Err(described(&status)))),
            Poll::Ready(None) => Poll::Ready(None),
            Poll::Pending => Pin::new(&mut this.draining).poll(cx).map(|()| None),
        }
    }
}

/// Implements the service for one version. The messages of both versions have the same fields.
macro_rules! version {
    ($version:ident) => {
        mod $version {
            use tonic_reflection::pb::$version::{
                ErrorResponse, ExtensionNumberResponse, FileDescriptorResponse,
                ListServiceResponse, ServerReflectionRequest, ServerReflectionResponse,
                ServiceResponse, server_reflection_request::MessageRequest,
                server_reflection_response::MessageResponse,
                server_reflection_server::ServerReflection,
            };

            use super::*;

            fn answer(request: ServerReflectionRequest) -> ServerReflectionResponse {
                let asked = match request.message_request.clone() {
                    Some(MessageRequest::FileByFilename(name)) => Asked::File(name),
                    Some(MessageRequest::FileContainingSymbol(name)) => Asked::Symbol(name),
                    Some(MessageRequest::FileContainingExtension(asked)) => {
                        Asked::Extension(asked.extension_number)
                    }
                    Some(MessageRequest::AllExtensionNumbersOfType(name)) => {
                        Asked::Extensions(name)
                    }
                    Some(MessageRequest::ListServices(_)) => Asked::Services,
                    None => Asked::Nothing,
                };
                let response = match INDEX.answer(asked) {
                    Ok(Answered::File(file)) => {
                        MessageResponse::FileDescriptorResponse(FileDescriptorResponse {
                            file_descriptor_proto: vec![file],
                        })
                    }
                    Ok(Answered::NoExtensions(base_type_name)) => {
                        MessageResponse::AllExtensionNumbersResponse(ExtensionNumberResponse {
                            base_type_name,
                            extension_number: Vec::new(),
                        })
                    }
                    Ok(Answered::Services(names)) => {
                        let service = names
                            .into_iter()
                            .map(|name| ServiceResponse { name })
                            .collect();
                        MessageResponse::ListServicesResponse(ListServiceResponse { service })
                    }
                    Err((code, error_message)) => MessageResponse::ErrorResponse(ErrorResponse {
                        error_code: code.into(),
                        error_message,
                    }),
                };
                ServerReflectionResponse {
                    valid_host: request.host.clone(),
                    original_request: Some(request),
                    message_response: Some(response),
                }
            }

            #[async_trait]
            impl ServerReflection for Reflection {
                type ServerReflectionInfoStream =
                    Reflected<ServerReflectionRequest, ServerReflectionResponse>;

                async fn server_reflection_info(
                    &self,
                    request: Request<Streaming<ServerReflectionRequest>>,
                ) -> Result<Response<Self::ServerReflectionInfoStream>, Status> {
                    Ok(Response::new(self.stream(request.into_inner(), answer)))
                }
            }
        }
    };
}

version!(v1);
version!(v1alpha);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_every_kind_are_found_in_their_files() {
        for name in [
            "tls.sessiond.v1.ConnectionService",
            "tls.sessiond.v1.ConnectionService.Drive",
            "tls.sessiond.v1.NewRequest",
            "tls.sessiond.v1.NewRequest.role",
            "tls.sessiond.v1.Call.method",
            "tls.sessiond.v1.Role",
            "tls.sessiond.v1.ROLE_SERVER",
            ".tls.sessiond.v1.Role",
            "grpc.health.v1.Health",
            "grpc.health.v1.HealthCheckResponse.ServingStatus",
            "grpc.health.v1.HealthCheckResponse.SERVING",
            "google.rpc.ErrorInfo",
            "google.protobuf.Timestamp",
            "grpc.reflection.v1.ServerReflection",
            "grpc.reflection.v1alpha.ServerReflection",
        ] {
            assert!(INDEX.answer(Asked::Symbol(name.into())).is_ok(), "{name}");
        }
        assert!(
            INDEX
                .answer(Asked::Symbol("tls.sessiond.v1.ROLE".into()))
                .is_err()
        );
        // The index has every file that an indexed file imports.
        for file in INDEX.files.values() {
            for import in FileDescriptorProto::decode(&file[..]).unwrap().dependency {
                assert!(INDEX.files.contains_key(&import), "{import}");
            }
        }
        let Ok(Answered::Services(services)) = INDEX.answer(Asked::Services) else {
            panic!()
        };
        assert!(
            services.contains(&"tls.sessiond.v1.WorkerService".to_owned()) && services.is_sorted()
        );
        assert!(
            INDEX
                .answer(Asked::Extensions("tls.sessiond.v1.Role".into()))
                .is_err(),
            "not a message"
        );
        assert!(
            INDEX
                .answer(Asked::Extensions("tls.sessiond.v1.NewRequest".into()))
                .is_ok()
        );
    }
}
