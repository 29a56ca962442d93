//! Compiles the protos to Rust and to the descriptor set that reflection serves. Does not need
//! protoc.

use std::{env, error::Error, fmt::Write, fs, path::Path};

use prost::Message;
use prost_build::{Service, ServiceGenerator};
use prost_types::FileDescriptorSet;

const ROOT: &str = "proto";
const ENVOY: &str = "envoy";
const FILES: [&str; 7] = [
    "tls/sessiond/v1/types.proto",
    "tls/sessiond/v1/connection_service.proto",
    "tls/sessiond/v1/session_service.proto",
    "tls/sessiond/v1/context_service.proto",
    "tls/sessiond/v1/worker_service.proto",
    "tls/sessiond/v1/admin_service.proto",
    "tls/sessiond/v1/ticket_key_service.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed={ROOT}");
    let descriptors = protox::compile(FILES, [ROOT])?;
    let out = env::var("OUT_DIR")?;
    fs::write(
        Path::new(&out).join("descriptors.bin"),
        descriptors.encode_to_vec(),
    )?;

    fs::write(Path::new(&out).join("tags.rs"), tags(&descriptors)?)?;

    let has = |feature: &str| env::var_os(format!("CARGO_FEATURE_{feature}")).is_some();
    let services = || tonic_prost_build::configure().codec_path("crate::codec::Codec");
    let clients = services()
        .build_client(has("STUBS"))
        .build_server(false)
        .service_generator();
    let servers = services()
        .build_client(false)
        .build_server(has("SERVER"))
        .service_generator();
    prost_build::Config::new()
        .bytes(["."])
        // A batch is a list of calls, and each takes the memory of the largest variant. A hostile
        // batch has many empty calls.
        .boxed(".tls.sessiond.v1.Call.method.new")
        .boxed(".tls.sessiond.v1.Call.method.put_session")
        .boxed(".tls.sessiond.v1.Call.method.lookup_session")
        // Answers are boxed because moving a large one by value costs more than the allocation.
        .boxed(".tls.sessiond.v1.Answer.result.new")
        .boxed(".tls.sessiond.v1.Answer.result.clear")
        .boxed(".tls.sessiond.v1.Answer.result.shutdown")
        .boxed(".tls.sessiond.v1.Answer.result.set_shutdown")
        .boxed(".tls.sessiond.v1.Answer.result.set_session")
        .boxed(".tls.sessiond.v1.Answer.result.put_session")
        .boxed(".tls.sessiond.v1.Answer.result.lookup_session")
        .boxed(".tls.sessiond.v1.Answer.result.report_alert")
        .service_generator(Box::new(Services { clients, servers }))
        .compile_fds(descriptors)?;

    // What Envoy speaks is no part of the contract.
    println!("cargo::rerun-if-changed={ENVOY}");
    let descriptors = protox::compile(["sds.proto"], [ENVOY])?;
    fs::write(
        Path::new(&out).join("envoy.bin"),
        descriptors.encode_to_vec(),
    )?;
    let services = tonic_prost_build::configure()
        .codec_path("crate::codec::Codec")
        .build_client(has("STUBS"))
        .build_server(has("SERVER"))
        .service_generator();
    prost_build::Config::new()
        .bytes(["."])
        .service_generator(services)
        .compile_fds(descriptors)?;
    Ok(())
}

/// Returns the source of a module with the field numbers of each message.
fn tags(descriptors: &FileDescriptorSet) -> Result<String, Box<dyn Error>> {
    let mut out = String::new();
    for message in descriptors.file.iter().flat_map(|file| &file.message_type) {
        writeln!(out, "pub mod {} {{", snake_case(message.name()))?;
        for field in &message.field {
            let number = u8::try_from(field.number())?;
            writeln!(
                out,
                "    pub const {}: u8 = {number};",
                field.name().to_uppercase()
            )?;
        }
        writeln!(out, "}}")?;
    }
    Ok(out)
}

fn snake_case(name: &str) -> String {
    let mut out = String::new();
    for c in name.chars() {
        if c.is_ascii_uppercase() && !out.is_empty() {
            out.push('_');
        }
        out.push(c.to_ascii_lowercase());
    }
    out
}

/// Generates clients and servers. In an Attach they use different types.
struct Services {
    clients: Box<dyn ServiceGenerator>,
    servers: Box<dyn ServiceGenerator>,
}

impl ServiceGenerator for Services {
    fn generate(&mut self, mut service: Service, buf: &mut String) {
        // The generated client has a constructor `new`, so the RPC `New` is named `new_connection`
        // in Rust. Its name on the wire stays.
        for method in &mut service.methods {
            if method.proto_name == "New" {
                method.name = "new_connection".into();
            }
        }
        self.clients.generate(service.clone(), buf);
        // The daemon decodes the calls of an Attach in place, and encodes the answers as they are
        // made.
        for method in &mut service.methods {
            if method.proto_name == "Attach" {
                method.input_type = "Calls".into();
                method.output_type = "Answers".into();
            }
        }
        self.servers.generate(service, buf);
    }

    fn finalize(&mut self, buf: &mut String) {
        self.clients.finalize(buf);
        self.servers.finalize(buf);
    }

    fn finalize_package(&mut self, package: &str, buf: &mut String) {
        self.clients.finalize_package(package, buf);
        self.servers.finalize_package(package, buf);
    }
}
