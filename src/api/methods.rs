//! The methods that the daemon serves.

use std::{collections::HashSet, sync::LazyLock};

use prost::Message;
use prost_types::FileDescriptorSet;
use tls_sessiond_proto as proto;

/// The paths of all methods that the daemon serves. Read only for a call that the table of rights
/// does not list.
static METHODS: LazyLock<HashSet<String>> = LazyLock::new(|| {
    let sets = [
        proto::FILE_DESCRIPTOR_SET,
        proto::envoy::FILE_DESCRIPTOR_SET,
        tonic_health::pb::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
    ];
    let mut methods = HashSet::new();
    for set in sets {
        let set = FileDescriptorSet::decode(set)
            .expect("the descriptors are compiled in and a test decodes them");
        for file in &set.file {
            for service in &file.service {
                let paths = service.method.iter().map(|method| {
                    format!("/{}.{}/{}", file.package(), service.name(), method.name())
                });
                methods.extend(paths);
            }
        }
    }
    methods
});

/// Returns whether the protobuf descriptors of the daemon have the method of this path.
pub(crate) fn serves(path: &str) -> bool {
    METHODS.contains(path)
}
