//! A message of the contract as a JSON value, in the proto3 JSON mapping.
//!
//! The mapping comes from the descriptors, so that a new field needs no code here. Fields with
//! their default value are written too, so that a script finds every key.

use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, SerializeOptions};
use serde_json::Value;
use tls_sessiond_proto as pb;
use tonic_health::pb::HealthCheckResponse;

use super::{failure::Failure, text::escaped};

/// A message whose descriptor is known by its full name.
pub(super) trait Described: Message {
    const NAME: &'static str;
}

macro_rules! described {
    ($($message:ident),* $(,)?) => {
        $(impl Described for pb::$message {
            const NAME: &'static str = concat!("tls.sessiond.v1.", stringify!($message));
        })*
    };
}

described!(
    Connection,
    Context,
    DrainResponse,
    ExplainSessionResponse,
    FreeConnectionResponse,
    GetConfigResponse,
    GetStatusResponse,
    ListContextsResponse,
    ListRingsResponse,
    RecentFailure,
    RecentMiss,
    ReloadResponse,
    RemoveSessionResponse,
    RevokeSessionsResponse,
    Ring,
    Session,
    SetLogLevelResponse,
    WatchSessionsResponse,
);

impl Described for HealthCheckResponse {
    const NAME: &'static str = "grpc.health.v1.HealthCheckResponse";
}

/// Converts messages to values.
pub(super) struct Mapping(DescriptorPool);

impl Mapping {
    /// Reads the descriptors of the contract and of `grpc.health.v1`.
    ///
    /// # Errors
    /// None with the descriptors of this build: they are part of it.
    pub(super) fn read() -> Result<Self, Failure> {
        let mut pool = DescriptorPool::new();
        for descriptors in [
            pb::FILE_DESCRIPTOR_SET,
            tonic_health::pb::FILE_DESCRIPTOR_SET,
        ] {
            pool.decode_file_descriptor_set(descriptors)
                .map_err(|err| Failure::Answer(err.to_string()))?;
        }
        Ok(Self(pool))
    }

    /// Returns a message as a value.
    ///
    /// # Errors
    /// The message cannot be mapped, for example because a time is out of range.
    pub(super) fn value<M: Described>(&self, message: &M) -> Result<Value, Failure> {
        let answer = |err: String| Failure::Answer(format!("{}: {}", M::NAME, escaped(&err)));
        let descriptor = self
            .0
            .get_message_by_name(M::NAME)
            .ok_or_else(|| answer("no descriptor".into()))?;
        let message = DynamicMessage::decode(descriptor, &*message.encode_to_vec())
            .map_err(|err| answer(err.to_string()))?;
        let options = SerializeOptions::new().skip_default_fields(false);
        message
            .serialize_with_options(serde_json::value::Serializer, &options)
            .map_err(|err| answer(err.to_string()))
    }

    /// Returns an object with one field of a message, by its name in JSON.
    ///
    /// # Errors
    /// As [`Self::value`].
    pub(super) fn field<M: Described>(&self, message: &M, name: &str) -> Result<Value, Failure> {
        let field = self.value(message)?[name].take();
        Ok(object(name, field))
    }

    /// Returns an object with one list: `{"NAME": [...]}`.
    ///
    /// # Errors
    /// As [`Self::value`].
    pub(super) fn list<M: Described>(&self, name: &str, items: &[M]) -> Result<Value, Failure> {
        let items: Result<Vec<_>, _> = items.iter().map(|item| self.value(item)).collect();
        Ok(object(name, items?.into()))
    }
}

/// Returns an object with one field.
fn object(name: &str, value: Value) -> Value {
    Value::Object([(name.to_owned(), value)].into_iter().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_follow_the_proto3_json_mapping() {
        let connection = pb::Connection {
            id: "ab".into(),
            role: pb::Role::Server.into(),
            create_time: Some(prost_types::Timestamp {
                seconds: 0,
                nanos: 500_000_000,
            }),
            ..Default::default()
        };
        let value = Mapping::read().unwrap().value(&connection).unwrap();
        assert_eq!(value["id"], "ab");
        assert_eq!(value["role"], "ROLE_SERVER");
        assert_eq!(value["createTime"], "1970-01-01T00:00:00.500Z");
        assert_eq!(value["sessionReused"], false);
        assert_eq!(value.get("expireTime"), None);
        assert_eq!(
            value.as_object().unwrap().keys().next().unwrap(),
            "id",
            "the order of the contract"
        );
        let revoked = pb::RevokeSessionsResponse {
            removed: 1 << 60,
            before: None,
        };
        let value = Mapping::read().unwrap().field(&revoked, "removed").unwrap();
        assert_eq!(value, serde_json::json!({"removed": "1152921504606846976"}));
    }
}
