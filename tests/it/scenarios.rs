//! The life-cycle scripts on the daemon's own engine. Every object is a connection of the daemon,
//! and the runner is the wire.

use std::collections::HashMap;

use tls_sessiond_proto as pb;

use crate::script::{Engine, Named, Script, Stage, Unseen, open_and_close, returned, scripts};

/// Bytes in flight to an object, and whether the transport has ended.
#[derive(Default)]
struct Wire {
    inbox: Vec<u8>,
    ended: bool,
}

struct Rewind {
    stage: Stage,
    wires: HashMap<String, Wire>,
}

impl Rewind {
    fn id(&self, x: &str) -> String {
        self.stage.actors[x].id.clone()
    }

    async fn established(&self, x: &str) -> bool {
        self.stage.look(x).await.state() == pb::ConnectionState::Established
    }

    /// Runs one Exchange with the queued bytes. Returns `None` if the call was refused.
    async fn exchange(&mut self, x: &str, plaintext: &str) -> Option<pb::ExchangeResponse> {
        let request = pb::ExchangeRequest {
            connection_id: self.id(x),
            ciphertext: self.wires[x].inbox.clone().into(),
            plaintext: plaintext.to_owned().into_bytes().into(),
            end_of_stream: self.wires[x].ended,
        };
        let response = self
            .stage
            .daemon
            .connections()
            .exchange(request)
            .await
            .ok()?
            .into_inner();
        self.wires.get_mut(x).unwrap().inbox.clear();
        self.inject(x, response.ciphertext.to_vec());
        Some(response)
    }
}

impl Engine for Rewind {
    const UNSEEN: &'static [Unseen] = &[];

    async fn begin(_: &Script, stage: Stage) -> Self {
        Self {
            stage,
            wires: HashMap::new(),
        }
    }

    fn stage(&mut self) -> &mut Stage {
        &mut self.stage
    }

    fn end(self) -> Stage {
        self.stage
    }

    async fn make(&mut self, wanted: &[(&str, pb::NewRequest)]) -> Vec<String> {
        let mut ids = Vec::new();
        for (_, request) in wanted {
            let made = self
                .stage
                .daemon
                .connections()
                .new_connection(request.clone())
                .await
                .unwrap();
            ids.push(made.into_inner().connection.unwrap().id);
        }
        ids
    }

    async fn clear(&mut self, x: &str) -> bool {
        let request = pb::ClearRequest {
            connection_id: self.id(x),
        };
        self.stage.daemon.connections().clear(request).await.is_ok()
    }

    async fn free(&mut self, gone: &[&str]) {
        for x in gone {
            let request = pb::FreeRequest {
                connection_id: self.id(x),
                allow_missing: false,
            };
            self.stage.daemon.connections().free(request).await.unwrap();
        }
    }

    /// SSL_shutdown reads the peer's close_notify once it has sent its own.
    async fn shutdown(&mut self, x: &str) -> i8 {
        if self.stage.look(x).await.shutdown.unwrap().sent {
            self.exchange(x, "").await;
        }
        let request = pb::ShutdownRequest {
            connection_id: self.id(x),
        };
        let Ok(response) = self.stage.daemon.connections().shutdown(request).await else {
            return -1;
        };
        let response = response.into_inner();
        self.inject(x, response.ciphertext.to_vec());
        returned(response.status())
    }

    async fn set_shutdown(&mut self, x: &str, flags: pb::ShutdownFlags) {
        let request = pb::SetShutdownRequest {
            connection_id: self.id(x),
            shutdown: Some(flags),
        };
        self.stage
            .daemon
            .connections()
            .set_shutdown(request)
            .await
            .unwrap();
    }

    async fn set_session(&mut self, x: &str, named: Option<Named>) -> bool {
        let named = named.unwrap_or_default();
        let session_id = if self.stage.actors[x].role == pb::Role::Server {
            named.server
        } else {
            named.client
        };
        let request = pb::SetSessionRequest {
            connection_id: self.id(x),
            session_id,
        };
        self.stage
            .daemon
            .connections()
            .set_session(request)
            .await
            .is_ok()
    }

    async fn remove(&mut self, request: pb::RemoveSessionRequest) -> bool {
        self.stage
            .daemon
            .sessions()
            .remove_session(request)
            .await
            .unwrap()
            .into_inner()
            .removed
    }

    async fn offered_unasked(&mut self) -> u8 {
        u8::from(open_and_close(self, None).await.contains("\"reused\":1"))
    }

    async fn advance(&mut self, x: &str) -> usize {
        self.exchange(x, "")
            .await
            .map_or(0, |response| response.ciphertext.len())
    }

    async fn step(&mut self, x: &str) -> String {
        let done = self.exchange(x, "").await.is_some_and(|response| {
            response
                .connection
                .is_some_and(|seen| seen.state() == pb::ConnectionState::Established)
        });
        format!("\"ret\":{},", if done { 1 } else { -1 })
    }

    async fn read(&mut self, x: &str) -> String {
        let ended = self.wires[x].ended;
        match self.exchange(x, "").await {
            None => "\"ret\":-1,".to_owned(),
            Some(response) if !response.plaintext.is_empty() => {
                let text = String::from_utf8(response.plaintext.to_vec()).unwrap();
                format!("\"ret\":{},\"data\":\"{text}\",", text.len())
            }
            Some(response) => {
                let seen = response.connection.unwrap();
                let received = seen.shutdown.unwrap().received;
                let failed = seen.state() == pb::ConnectionState::Failed;
                match response.alert {
                    Some(alert) => format!("\"ret\":{},", if alert.received { 0 } else { -1 }),
                    None if failed => format!("\"ret\":{},", if ended { 0 } else { -1 }),
                    None if received => "\"ret\":0,\"err\":\"ZERO_RETURN\",".to_owned(),
                    None => "\"ret\":-1,\"err\":\"WANT_READ\",".to_owned(),
                }
            }
        }
    }

    /// SSL_write runs the handshake first. Afterwards it does not read.
    async fn write(&mut self, x: &str, text: &str) -> String {
        let ret = if self.established(x).await {
            let inbox = std::mem::take(&mut self.wires.get_mut(x).unwrap().inbox);
            let written = self.exchange(x, text).await.is_some();
            self.wires.get_mut(x).unwrap().inbox = inbox;
            if written {
                text.len().to_string()
            } else {
                "-1".into()
            }
        } else {
            assert!(
                self.exchange(x, text).await.is_none(),
                "plaintext before the handshake was accepted"
            );
            self.exchange(x, "").await;
            "-1".into()
        };
        format!("\"ret\":{ret},")
    }

    fn renew(&mut self, x: &str) {
        self.wires.insert(x.into(), Wire::default());
    }

    fn cut(&mut self, x: &str) {
        self.wires.get_mut(x).unwrap().ended = true;
    }

    fn inject(&mut self, x: &str, bytes: Vec<u8>) {
        if let Some(peer) = self.stage.peer(x) {
            self.wires.get_mut(peer).unwrap().inbox.extend(bytes);
        }
    }
}

#[tokio::test]
async fn openssl_scenarios_hold_for_the_daemons_engine() {
    for script in scripts() {
        script.play::<Rewind>().await;
    }
}
