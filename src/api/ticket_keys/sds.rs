//! Envoy's secret discovery service (xDS v3): the rings as secrets, and Envoy's acknowledgements as those of
//! a member.
//!
//! Both streams do the same. They differ in their messages: StreamSecrets tells all secrets in each answer,
//! DeltaSecrets those that have changed.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use prost::Message;
use prost_types::Any;
use tls_sessiond_keys::{epoch::Layout, ring::Style};
use tls_sessiond_proto::envoy::{self, secret_discovery_service_server::SecretDiscoveryService};
use tokio::time::{Instant, sleep_until};
use tokio_stream::StreamExt;
use tonic::{Request, Response, Status, Streaming, async_trait};

use super::{
    TicketKeys, ring,
    stream::{MemberStream, Tells},
};
use crate::{
    api::{
        access::Caller,
        call::{Deadline, caller},
        error::Refusal,
        role::Roles,
    },
    rings::{Membership, NotShared, RingDesk},
};

/// The type of a secret.
const SECRET: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";
/// Most secrets of one stream.
const SECRETS_MAX: usize = 64;

/// What a proxy says, in either form.
struct Said {
    node: Option<String>,
    type_url: String,
    subscribe: Vec<String>,
    unsubscribe: Vec<String>,
    /// In StreamSecrets, `subscribe` is the whole list.
    is_whole: bool,
    nonce: String,
    error: Option<String>,
}

impl From<envoy::DiscoveryRequest> for Said {
    fn from(said: envoy::DiscoveryRequest) -> Self {
        Self {
            node: said.node.map(|node| node.id),
            type_url: said.type_url,
            subscribe: said.resource_names,
            unsubscribe: Vec::new(),
            is_whole: true,
            nonce: said.response_nonce,
            error: said.error_detail.map(|error| error.message),
        }
    }
}

impl From<envoy::DeltaDiscoveryRequest> for Said {
    fn from(said: envoy::DeltaDiscoveryRequest) -> Self {
        Self {
            node: said.node.map(|node| node.id),
            type_url: said.type_url,
            subscribe: said.resource_names_subscribe,
            unsubscribe: said.resource_names_unsubscribe,
            is_whole: false,
            nonce: said.response_nonce,
            error: said.error_detail.map(|error| error.message),
        }
    }
}

/// One secret as it is told.
struct ToldSecret {
    name: String,
    sequence: u64,
    secret: Any,
    /// Whether it differs from what was told before.
    is_new: bool,
}

/// Makes an answer of a form, with its nonce.
type Form<T> = fn(Vec<ToldSecret>, String) -> T;

fn whole(secrets: Vec<ToldSecret>, nonce: String) -> envoy::DiscoveryResponse {
    let numbers: Vec<_> = secrets
        .iter()
        .map(|secret| secret.sequence.to_string())
        .collect();
    envoy::DiscoveryResponse {
        version_info: numbers.join("."),
        resources: secrets.into_iter().map(|secret| secret.secret).collect(),
        type_url: SECRET.into(),
        nonce,
    }
}

fn changed(secrets: Vec<ToldSecret>, nonce: String) -> envoy::DeltaDiscoveryResponse {
    let changed = secrets.into_iter().filter(|secret| secret.is_new);
    envoy::DeltaDiscoveryResponse {
        system_version_info: nonce.clone(),
        resources: changed
            .map(|secret| envoy::Resource {
                version: secret.sequence.to_string(),
                resource: Some(secret.secret),
                name: secret.name,
            })
            .collect(),
        type_url: SECRET.into(),
        nonce,
    }
}

/// Returns the secret of a ring.
fn secret(name: &str, keys: impl Iterator<Item = Bytes>) -> Any {
    let keys = keys.map(|inline_bytes| envoy::DataSource { inline_bytes });
    let secret = envoy::Secret {
        name: name.into(),
        session_ticket_keys: Some(envoy::SessionTicketKeys {
            keys: keys.collect(),
        }),
    };
    Any {
        type_url: SECRET.into(),
        value: secret.encode_to_vec(),
    }
}

/// One secret of a stream.
struct Subscription {
    membership: Membership,
    /// The number of the last instruction that was told.
    told: u64,
}

/// The stream of one proxy.
struct Proxy {
    service: Arc<TicketKeys>,
    by: Arc<Caller>,
    member: String,
    rings: BTreeMap<String, Subscription>,
    /// By nonce: what an answer has told. Only answers that are not acknowledged.
    open: BTreeMap<u64, Vec<(String, u64)>>,
    nonces: u64,
}

/// Most answers that a proxy leaves without an acknowledgement. Later ones replace the oldest.
const OPEN_MAX: usize = 16;

impl Proxy {
    /// Takes a message. Returns whether there may be something new to tell.
    async fn hear(&mut self, said: Said) -> Result<bool, Refusal> {
        if !said.type_url.is_empty() && said.type_url != SECRET {
            return Err(Refusal::MemberInvalid {
                field: "type_url",
                why: format!("expected {SECRET}"),
            });
        }
        if let Ok(nonce) = said.nonce.parse::<u64>()
            && let Some(answer) = self.open.remove(&nonce)
        {
            // Answers before it are settled by it.
            self.open = self.open.split_off(&nonce);
            for (name, sequence) in answer {
                if let Some(subscription) = self.rings.get(&name) {
                    match &said.error {
                        None => subscription.membership.acknowledge(sequence).await??,
                        Some(why) => subscription.membership.refuse(sequence, why).await??,
                    }
                }
            }
        }
        if said.is_whole {
            self.rings.retain(|name, _| said.subscribe.contains(name));
        }
        for name in &said.unsubscribe {
            self.rings.remove(name);
        }
        let mut is_new = false;
        for name in said.subscribe {
            if self.rings.contains_key(&name) {
                continue;
            }
            if self.rings.len() >= SECRETS_MAX {
                let why = format!("a stream has at most {SECRETS_MAX} secrets");
                return Err(Refusal::MemberLimit(why));
            }
            let ring = self.service.ring(&self.by, &name, Roles::KEYS)?;
            let membership = ring
                .join(&self.member, Style::List, self.by.owner())
                .await
                .map_err(|why| why.of_ring(&name))?;
            tracing::info!(
                ring = name,
                member = self.member,
                owner = &**self.by.owner(),
                "ticket keys: a member has joined by SDS"
            );
            let told = 0;
            self.rings.insert(name, Subscription { membership, told });
            is_new = true;
        }
        Ok(is_new)
    }

    /// Returns an answer, if one of the secrets has changed.
    ///
    /// # Errors
    /// A lease has ended, or the caller has lost its role.
    fn tell<T>(&mut self, form: Form<T>) -> Result<Option<T>, Refusal> {
        let mut secrets = Vec::with_capacity(self.rings.len());
        for (name, subscription) in &mut self.rings {
            self.service.ring(&self.by, name, Roles::KEYS)?;
            let (instruction, keys) = subscription
                .membership
                .instruction(Layout::Bytes80)
                .ok_or_else(|| Refusal::MemberFenced("the lease has ended".into()))?;
            let keys = keys
                .iter()
                .map(|(_, key)| Bytes::copy_from_slice(key.bytes()));
            secrets.push(ToldSecret {
                secret: secret(name, keys),
                name: name.clone(),
                sequence: instruction.sequence,
                is_new: instruction.sequence != subscription.told,
            });
            subscription.told = instruction.sequence;
        }
        if !secrets.iter().any(|secret| secret.is_new) {
            return Ok(None);
        }
        self.nonces += 1;
        let told = secrets
            .iter()
            .map(|secret| (secret.name.clone(), secret.sequence));
        self.open.insert(self.nonces, told.collect());
        while self.open.len() > OPEN_MAX {
            self.open.pop_first();
        }
        Ok(Some(form(secrets, self.nonces.to_string())))
    }

    /// Waits until one of the rings has changed.
    async fn changed(&mut self) {
        let waits = self.rings.values_mut().map(|subscription| {
            Box::pin(async {
                // A ring that is gone is noticed by the next answer.
                subscription.membership.changed().await;
            })
        });
        let waits: Vec<_> = waits.collect();
        match waits.is_empty() {
            true => std::future::pending().await,
            false => drop(futures_util::future::select_all(waits).await),
        }
    }
}

impl TicketKeys {
    fn secrets<M, T>(
        self: &Arc<Self>,
        by: Arc<Caller>,
        deadline: Option<Deadline>,
        said: Streaming<M>,
        form: Form<T>,
    ) -> Result<MemberStream<T>, Refusal>
    where
        M: Into<Said> + Send + 'static,
        T: Send + 'static,
    {
        let service = Arc::clone(self);
        let deadline = deadline.map(|Deadline(at)| at);
        let caller = Arc::clone(&by);
        MemberStream::begin(&caller, |tells| {
            serve(service, by, deadline, said, form, tells)
        })
    }
}

async fn serve<M: Into<Said>, T>(
    service: Arc<TicketKeys>,
    by: Arc<Caller>,
    deadline: Option<Instant>,
    mut said: Streaming<M>,
    form: Form<T>,
    tells: Tells<T>,
) -> Result<(), Status> {
    let late = async move {
        match deadline {
            Some(at) => sleep_until(at).await,
            None => std::future::pending().await,
        }
    };
    tokio::pin!(late);
    let lost = Arc::clone(&by).loses(Roles::KEYS, None, Arc::clone(&service.state));
    tokio::pin!(lost);
    let draining = service.draining.clone();
    let mut proxy: Option<Proxy> = None;
    loop {
        if let Some(proxy) = &mut proxy
            && let Some(answer) = proxy.tell(form)?
            && tells.send(Ok(answer)).await.is_err()
        {
            return Ok(());
        }
        let changes = async {
            match &mut proxy {
                Some(proxy) => proxy.changed().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = changes => {}
            () = &mut late => return Err(Refusal::DeadlineExceeded.into()),
            refusal = &mut lost => return Err(refusal.into()),
            () = draining.cancelled() => return Err(Refusal::Draining.into()),
            message = said.try_next() => {
                let Some(message) = message? else { return Ok(()) };
                let message: Said = message.into();
                let known = match proxy.take() {
                    Some(known) => known,
                    None => Proxy {
                        service: Arc::clone(&service),
                        by: Arc::clone(&by),
                        member: message.node.clone().filter(|id| !id.is_empty()).ok_or_else(missing_node)?,
                        rings: BTreeMap::new(),
                        open: BTreeMap::new(),
                        nonces: 0,
                    },
                };
                proxy.insert(known).hear(message).await?;
            }
        }
    }
}

fn missing_node() -> Refusal {
    Refusal::MemberInvalid {
        field: "node.id",
        why: "required in the first message: the name of the member, for example --service-node of Envoy".into(),
    }
}

#[async_trait]
impl SecretDiscoveryService for TicketKeys {
    type StreamSecretsStream = MemberStream<envoy::DiscoveryResponse>;
    type DeltaSecretsStream = MemberStream<envoy::DeltaDiscoveryResponse>;

    async fn stream_secrets(
        &self,
        request: Request<Streaming<envoy::DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamSecretsStream>, Status> {
        let (by, deadline) = self.admitted(&request)?;
        let stream = Arc::new(self.clone()).secrets(by, deadline, request.into_inner(), whole)?;
        Ok(Response::new(stream))
    }

    async fn delta_secrets(
        &self,
        request: Request<Streaming<envoy::DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaSecretsStream>, Status> {
        let (by, deadline) = self.admitted(&request)?;
        let stream = Arc::new(self.clone()).secrets(by, deadline, request.into_inner(), changed)?;
        Ok(Response::new(stream))
    }

    async fn fetch_secrets(
        &self,
        request: Request<envoy::DiscoveryRequest>,
    ) -> Result<Response<envoy::DiscoveryResponse>, Status> {
        let by = caller(&request)?;
        let names = &request.get_ref().resource_names;
        if names.len() > SECRETS_MAX {
            let why = format!("a call has at most {SECRETS_MAX} secrets");
            return Err(Refusal::MemberLimit(why).into());
        }
        let mut secrets = Vec::with_capacity(names.len());
        for name in names {
            let registry = self.state.registry();
            let ring: Arc<RingDesk> = ring(&self.rings, &by, &registry, name, Roles::KEYS)?;
            let now = ring.keys_now(Layout::Bytes80);
            let (sequence, keys) = now.ok_or(Refusal::RingAway(NotShared::NotSeen))?;
            let keys = keys.iter().map(|key| Bytes::copy_from_slice(key.bytes()));
            secrets.push(ToldSecret {
                secret: secret(name, keys),
                name: name.clone(),
                sequence,
                is_new: true,
            });
        }
        Ok(Response::new(whole(secrets, String::new())))
    }
}
