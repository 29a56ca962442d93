//! The membership of a server: one stream of WatchTicketKeys after the other.

use std::{future::pending, time::Duration};

use futures_util::FutureExt;
use tls_sessiond_core::clock::Clock;
use tls_sessiond_proto::{self as pb, TicketKeyLayout, watch_ticket_keys_request::Event as Said};
use tokio::{
    sync::mpsc,
    time::{sleep, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Streaming};
use tonic_types::StatusExt;

use super::{
    super::{
        super::{Console, channel::RemoteDaemon, failure::Failure},
        stub,
    },
    order::{EpochKey, KeyOrder},
    sink::{NotRun, Sink},
    stop::Stop,
};
use crate::supervisor::Supervisor;

/// The first and the largest delay before the agent connects again.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(5));
/// The first and the largest delay before it gives an instruction to its server again.
const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));
/// The first and the largest delay before it joins again, after the ring has ended its membership.
const REJOIN: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(10));
/// So many memberships that were ended within a minute mean that two agents have one name.
const REPLACED_OFTEN: usize = 3;
/// In milliseconds.
const MINUTE: u64 = 60_000;
/// How long the daemon may take to hear that the member leaves.
const LEAVE: Duration = Duration::from_secs(2);
/// Messages to the daemon that may wait.
const WAITING_MAX: usize = 4;

/// The membership of one server.
pub(super) struct Membership {
    pub(super) ring: String,
    pub(super) member: String,
    pub(super) layout: TicketKeyLayout,
    /// Whether the server takes one key only.
    pub(super) is_single: bool,
    pub(super) sink: Sink,
    pub(super) stop: Stop,
    pub(super) supervisor: Supervisor,
    /// Whether the service manager was told that the agent is ready.
    pub(super) is_ready: bool,
    /// The keys that the server ran when the agent looked last. Empty: other keys than it was to run.
    pub(super) running: Vec<EpochKey>,
    /// The epoch that it encrypted with then.
    pub(super) encrypts: u64,
}

/// What the log has said about the way to the daemon.
#[derive(Default)]
struct Outage {
    /// Whether any stream has had an instruction.
    has_joined: bool,
    /// The failure that the log has named last. Empty: the agent is a member.
    told: String,
    /// When the ring ended the membership, in milliseconds. Those of the last minute.
    ended: Vec<u64>,
}

impl Membership {
    /// Holds the membership until the agent is told to stop. Then the member leaves the ring.
    ///
    /// # Errors
    /// The first attempt failed in a way that no later one mends.
    pub(super) async fn hold(&mut self, console: &Console) -> Result<(), Failure> {
        let mut outage = Outage::default();
        let mut delay = BACK_OFF.0;
        loop {
            let mut has_joined = false;
            let Err(failure) = self.attach(console, &mut outage, &mut has_joined).await else {
                tracing::info!(ring = self.ring, member = self.member, "left the ring");
                return Ok(());
            };
            if has_joined {
                delay = BACK_OFF.0;
            }
            if !outage.has_joined && is_final(&failure) {
                return Err(failure);
            }
            let pause = match is_fenced(&failure) {
                true => self.tell_fenced(&mut outage),
                false => {
                    self.tell_lost(&mut outage, &failure);
                    let pause = delay;
                    delay = (2 * delay).min(BACK_OFF.1);
                    pause
                }
            };
            tokio::select! {
                () = sleep(pause) => {}
                () = self.stop.asked() => return Ok(()),
            }
        }
    }

    /// Logs that the way to the daemon is lost, once.
    fn tell_lost(&self, outage: &mut Outage, failure: &Failure) {
        let why = failure.to_string();
        // A daemon that stops, and one that is not there, are one outage.
        let said = if can_pass(failure) { "away" } else { &why };
        if outage.told == said {
            return;
        }
        outage.told = said.into();
        let (ring, member) = (&self.ring, &self.member);
        tracing::warn!(
            ring,
            member,
            err = why,
            "not a member now; the server goes on with the keys that it has, and the agent tries again"
        );
    }

    /// Logs that the ring has ended the membership. Returns when to join again.
    fn tell_fenced(&self, outage: &mut Outage) -> Duration {
        let now = Clock::System.now().at.as_millis();
        outage.ended.retain(|at| now.saturating_sub(*at) < MINUTE);
        outage.ended.push(now);
        let (ring, member) = (&self.ring, &self.member);
        match outage.ended.len() {
            1 => tracing::warn!(
                ring,
                member,
                "the ring has ended the membership: an operator has fenced it, it was too late, or another agent has joined \
                 with its name; joining again"
            ),
            REPLACED_OFTEN => tracing::error!(
                ring,
                member,
                times = REPLACED_OFTEN,
                "the ring has ended the membership again and again: another agent seems to have the same name; give each \
                 server a name of its own with --member"
            ),
            _ => {}
        }
        outage.told = "fenced".into();
        let doublings = u32::try_from(outage.ended.len() - 1).unwrap_or(u32::MAX);
        let factor = 2_u32.saturating_pow(doublings);
        REJOIN.0.saturating_mul(factor).min(REJOIN.1)
    }

    /// Joins, and does what the daemon says. Returns after SIGTERM.
    async fn attach(
        &mut self,
        console: &Console,
        outage: &mut Outage,
        has_joined: &mut bool,
    ) -> Result<(), Failure> {
        let style = self.sink.style(self.is_single);
        let join = pb::JoinRing {
            ring: self.ring.clone(),
            member: self.member.clone(),
            layout: self.layout.into(),
            style: style.into(),
        };
        let mut link = tokio::select! {
            link = Link::begin(console, join) => link?,
            () = self.stop.asked() => return Ok(()),
        };
        let mut work: Option<Work> = None;
        loop {
            let pause = work.as_ref().and_then(|work| work.pause);
            let due = async {
                match pause {
                    Some(pause) => sleep(pause).await,
                    None => pending().await,
                }
            };
            tokio::select! {
                told = link.next() => {
                    let order = KeyOrder::of(&self.ring, told?);
                    if !*has_joined {
                        *has_joined = true;
                        self.tell_joined(outage, &link);
                    }
                    // What the log has said about the order before is still true of the server.
                    let before = work.map_or_else(String::new, |work| work.trouble);
                    work = Some(Work::of(order, before));
                }
                () = due => {}
                () = self.stop.asked() => return link.leave().await,
            }
            let Some(work) = &mut work else { continue };
            let attempt = async {
                work.order.check(self.layout, style)?;
                if self.running != work.order.keys {
                    self.sink.write(&work.order)?;
                    work.is_written = true;
                } else if !self.sink.gives_again() {
                    return Ok(());
                }
                self.sink.give(&work.order).await
            };
            let done = tokio::select! {
                done = attempt => done,
                () = self.stop.asked() => return link.leave().await,
            };
            let sequence = work.order.sequence;
            match done {
                Ok(()) => {
                    if !work.is_done {
                        link.say(Said::Acknowledge(pb::AcknowledgeKeys { sequence }))
                            .await;
                    }
                    self.tell_done(work);
                }
                Err(NotRun(reason)) => {
                    self.tell_trouble(work, &reason);
                    link.say(Said::Refuse(pb::RefuseKeys { sequence, reason }))
                        .await;
                }
            }
        }
    }

    fn tell_joined(&self, outage: &mut Outage, link: &Link) {
        outage.has_joined = true;
        // Between agents with one name, each joins for a moment.
        if outage.told != "fenced" {
            let (ring, member) = (&self.ring, &self.member);
            let server = self.sink.kind();
            tracing::info!(ring, member, server, daemon = %link.address, "joined the ring");
        }
        outage.told.clear();
    }

    fn tell_done(&mut self, work: &mut Work) {
        let (ring, member, epoch) = (&self.ring, &self.member, work.order.encrypt_epoch);
        if self.running.is_empty() || self.encrypts != epoch {
            tracing::info!(
                ring,
                member,
                epoch,
                sequence = work.order.sequence,
                "the server encrypts with this epoch"
            );
        }
        self.supervisor
            .status(&format!("{member}: encrypts with epoch {epoch} of {ring}"));
        self.tell_ready();
        self.encrypts = epoch;
        if self.running != work.order.keys {
            self.running = work.order.keys.clone();
        }
        work.is_done = true;
        work.trouble.clear();
        work.retry = RETRY.0;
        work.pause = self.sink.looks_every();
    }

    fn tell_trouble(&mut self, work: &mut Work, reason: &str) {
        if work.trouble != reason {
            work.trouble = reason.into();
            let (ring, member, sequence) = (&self.ring, &self.member, work.order.sequence);
            tracing::warn!(
                ring,
                member,
                sequence,
                reason,
                "the server does not run the keys; the agent tries again"
            );
            self.supervisor.status(&format!("{member}: {reason}"));
        }
        // A server that is to start after the agent has its files by now.
        if work.is_written && self.sink.has_files() {
            self.tell_ready();
        }
        self.running.clear();
        work.is_done = false;
        work.pause = Some(work.retry);
        work.retry = (2 * work.retry).min(RETRY.1);
    }

    /// Tells the service manager, once, that a server may be started.
    fn tell_ready(&mut self) {
        if !std::mem::replace(&mut self.is_ready, true) {
            self.supervisor
                .ready(&format!("{} is a member of {}", self.member, self.ring));
        }
    }
}

/// The instruction that the server is to run, and how far it is.
struct Work {
    order: KeyOrder,
    /// Whether its files are written.
    is_written: bool,
    /// Whether the server runs it, as far as the agent knows.
    is_done: bool,
    /// Why the server did not run it at the last attempt, as the log has said. Empty: it did.
    trouble: String,
    /// When to try again, or to look again. `None`: not before the next instruction.
    pause: Option<Duration>,
    /// The next pause after an attempt that fails.
    retry: Duration,
}

impl Work {
    fn of(order: KeyOrder, trouble: String) -> Self {
        Self {
            order,
            is_written: false,
            is_done: false,
            trouble,
            pause: None,
            retry: RETRY.0,
        }
    }
}

/// One stream.
struct Link {
    daemon: RemoteDaemon,
    address: String,
    says: mpsc::Sender<pb::WatchTicketKeysRequest>,
    told: Streaming<pb::WatchTicketKeysResponse>,
}

impl Link {
    /// Connects and joins.
    async fn begin(console: &Console, join: pb::JoinRing) -> Result<Self, Failure> {
        let address = console.address()?.to_string();
        let daemon = console.daemon().await?;
        let (says, said) = mpsc::channel(WAITING_MAX);
        let mut client = stub(&daemon);
        let call = client.watch_ticket_keys(ReceiverStream::new(said));
        let link = async {
            let event = Some(Said::Join(join));
            // The channel is empty.
            drop(says.try_send(pb::WatchTicketKeysRequest { event }));
            daemon.call(call).await
        };
        let told = link.await?;
        Ok(Self {
            daemon,
            address,
            says,
            told,
        })
    }

    /// Returns the newest instruction, as soon as there is one.
    async fn next(&mut self) -> Result<pb::WatchTicketKeysResponse, Failure> {
        let mut told = self.told.message().await;
        // Those that came while the server was busy with an earlier one.
        while let Ok(Some(_)) = &told
            && let Some(later) = self.told.message().now_or_never()
        {
            told = later;
        }
        match told {
            Ok(Some(told)) => Ok(told),
            Ok(None) => Err(self.daemon.ended()),
            Err(status) => Err(self.daemon.failure(status)),
        }
    }

    /// Tells the daemon something. If the stream has ended, [`Self::next`] says why.
    async fn say(&self, event: Said) {
        let event = Some(event);
        drop(self.says.send(pb::WatchTicketKeysRequest { event }).await);
    }

    /// Leaves the ring, and waits until the daemon has heard it.
    async fn leave(mut self) -> Result<(), Failure> {
        let heard = async {
            self.say(Said::Leave(pb::LeaveRing {})).await;
            while self.next().await.is_ok() {}
        };
        if timeout(LEAVE, heard).await.is_err() {
            tracing::warn!("the daemon has not heard that this member leaves");
        }
        Ok(())
    }
}

/// Returns whether the ring has ended the membership.
fn is_fenced(failure: &Failure) -> bool {
    let Failure::Refused(status) = failure else {
        return false;
    };
    let info = status.get_details_error_info();
    info.is_some_and(|info| info.reason == "MEMBER_FENCED")
}

/// Returns whether the daemon is away for a time, for example because it is started again.
fn can_pass(failure: &Failure) -> bool {
    match failure {
        Failure::Unreachable { .. } => true,
        Failure::Refused(status) => matches!(
            status.code(),
            Code::Unavailable
                | Code::DeadlineExceeded
                | Code::ResourceExhausted
                | Code::Cancelled
                | Code::Unknown
        ),
        _ => false,
    }
}

/// Returns whether the agent, at its start, ends with this failure: an option or the configuration of the
/// daemon is wrong.
fn is_final(failure: &Failure) -> bool {
    !can_pass(failure) && !is_fenced(failure)
}
