//! The check of a store before it is used: every script on keys of its own, and what its settings
//! mean for sessions.

use std::{sync::Arc, time::Duration};

use aws_lc_rs::rand;
use tls_sessiond_store::{
    layout::{Fit, Name, Pool, RingName},
    script::{
        Answer, Claim, Criteria, Expected, Head, Holder, Mode, REVOCATIONS_MAX, REVOCATIONS_OF_ALL,
        Refused, Request, RingVersion, Token,
    },
};
use tls_sessiond_types::Version;
use tokio::time::Instant;

use super::{
    command::By,
    link::{Link, Unsent},
    target::OpenError,
};

/// How long the check waits for each answer.
const ANSWER_MAX: Duration = Duration::from_secs(5);
/// How long the keys of the check live, if it does not reach its end.
const LIFE: u64 = 10_000;
/// After every time of every store.
const FAR: u64 = u64::MAX >> 11;

/// Errors of a store that may be over in a while: it is full, reads its file, or lacks its replicas.
const PASSING: [&str; 8] = [
    "OOM",
    "LOADING",
    "BUSY",
    "MISCONF",
    "MASTERDOWN",
    "READONLY",
    "NOREPLICAS",
    "TRYAGAIN",
];

/// Why a store cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// No connection can be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// A script did not run.
    #[error("{address}: the script `{script}` did not run: {why}")]
    Script {
        /// The address.
        address: String,
        /// What the script does.
        script: &'static str,
        /// Why.
        why: Unsent,
    },
    /// The system has no random numbers.
    #[error("the system has no random numbers")]
    NoRandomness,
    /// The store is of a kind that this version does not use.
    #[error("{address}: {why}")]
    Kind {
        /// The address.
        address: String,
        /// What is wrong.
        why: String,
    },
}

impl CheckError {
    /// Returns the key of `store.redis` that the error is about.
    pub fn key(&self) -> &'static str {
        match self {
            Self::Open(err) => err.key(),
            // Of the user, or of the prefix that the user may use.
            Self::Script { why, .. } if why.code() == Some("NOPERM") => "user",
            Self::Script { .. } | Self::Kind { .. } | Self::NoRandomness => "urls",
        }
    }

    /// Returns whether the store may be usable later with the same configuration: it is away, full,
    /// or busy. Otherwise a daemon does not start.
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Open(err) => err.may_pass(),
            Self::Script { why, .. } => match why {
                Unsent::Closed | Unsent::Late => true,
                Unsent::Unreadable => false,
                Unsent::Refused(_) => why.code().is_some_and(|code| PASSING.contains(&code)),
            },
            Self::Kind { .. } | Self::NoRandomness => false,
        }
    }
}

/// A check that is under way.
struct Check<'l> {
    link: &'l Arc<Link>,
    address: String,
}

/// Checks the store. Returns warnings about its settings.
pub(super) async fn check(link: &Arc<Link>, address: String) -> Result<Vec<String>, CheckError> {
    let check = Check { link, address };
    let info = check.info().await?;
    check.kind(&info)?;
    check.scripts().await?;
    let mut warnings = memory_warnings(&info);
    if let Ok(redis::Value::BulkString(user)) = check.send("ACL", &["WHOAMI"]).await
        && user == b"default"
    {
        warnings.push(
            "the daemon is the user `default`, as every client of the server can be: give it a user of its own \
             (docs/shared-store.md has the ACL)"
                .into(),
        );
    }
    Ok(warnings)
}

impl Check<'_> {
    async fn send(&self, name: &str, words: &[&str]) -> Result<redis::Value, Unsent> {
        let mut command = redis::cmd(name);
        command.arg(words);
        self.link.send(&command, Instant::now() + ANSWER_MAX).await
    }

    async fn info(&self) -> Result<String, CheckError> {
        match self.send("INFO", &[]).await {
            Ok(redis::Value::BulkString(text)) => Ok(String::from_utf8_lossy(&text).into_owned()),
            Ok(redis::Value::VerbatimString { text, .. }) => Ok(text),
            Ok(_) => Err(self.failed("INFO", Unsent::Unreadable)),
            Err(err) => Err(self.failed("INFO", err)),
        }
    }

    fn failed(&self, script: &'static str, why: Unsent) -> CheckError {
        CheckError::Script {
            address: self.address.clone(),
            script,
            why,
        }
    }

    fn kind(&self, info: &str) -> Result<(), CheckError> {
        let refuse = |why: &str| {
            Err(CheckError::Kind {
                address: self.address.clone(),
                why: why.into(),
            })
        };
        if field(info, "cluster_enabled") == Some("1") {
            return refuse("the server is part of a cluster, and this version uses one server");
        }
        if field(info, "role").is_some_and(|role| role != "master") {
            return refuse("the server is a replica: name its primary");
        }
        Ok(())
    }

    async fn run(&self, script: &'static str, request: &Request) -> Result<Answer, CheckError> {
        // By its text first, so that the store knows its hash then.
        self.run_by(script, request, By::Text).await
    }

    async fn run_by(
        &self,
        script: &'static str,
        request: &Request,
        by: By,
    ) -> Result<Answer, CheckError> {
        let deadline = Instant::now() + ANSWER_MAX;
        self.link
            .ask_or_tell(request, by, deadline)
            .await
            .map_err(|why| self.failed(script, why))
    }

    /// Runs every script, on keys that no session has.
    async fn scripts(&self) -> Result<(), CheckError> {
        let mut random = [0; 24];
        rand::fill(&mut random).map_err(|_| CheckError::NoRandomness)?;
        let wrong = |script| Err(self.failed(script, Unsent::Unreadable));
        let name = Name::read(&random[..16]).unwrap_or(Name::ZERO);
        let pool = Pool::beside(name);
        let mut holder = [0; 8];
        holder.copy_from_slice(&random[16..]);
        let holder = Holder(holder);
        let mut place = [0; 16];
        place.copy_from_slice(&random[..16]);
        let beat = Request::Beat {
            bucket: name.bucket(),
            holder,
            life: LIFE,
            expected: Expected::Any,
            valid_until: FAR,
        };
        let claim = match self.run("beat", &beat).await? {
            Answer::Beaten {
                deadline, revision, ..
            } => Claim {
                holder,
                deadline,
                revision,
            },
            _ => return wrong("beat"),
        };
        let head = Head {
            single_use: true,
            version: Version::Tls13,
            cipher_suite: 0,
            fit: Fit([7; 8]),
        };
        let token = Token(1);
        let put = Request::Put {
            name,
            claim,
            token,
            head,
            sealed: vec![7; 16],
            valid_until: FAR,
            life: LIFE,
            pool: Some(pool),
        };
        let criteria = Criteria {
            fit: head.fit,
            versions: vec![Version::Tls13],
            cipher_suite: None,
        };
        let find = |mode| Request::Find {
            name,
            claim,
            token: Token(2),
            mode,
            valid_until: FAR,
        };
        let release = Request::Release {
            holder,
            holds: vec![(name, token)],
        };
        let remove = Request::Remove {
            entries: vec![(name, None)],
        };
        let newest = Request::Newest {
            pool,
            gone: vec![name],
        };
        let known = claim.revision;
        let revoke = Request::Revoke {
            entries: Vec::new(),
            known: 0,
            most: REVOCATIONS_MAX + REVOCATIONS_OF_ALL,
        };
        let revise = Request::Revise {
            bucket: name.bucket(),
            revision: known,
        };
        let resign = Request::Resign {
            bucket: name.bucket(),
            holder,
            server: "check".into(),
        };
        // The store forgets it after a moment, because nothing is written.
        let ring = Request::Ring {
            ring: RingName(place),
            daemon: holder,
            lease: 1,
            known: RingVersion::default(),
            write: None,
        };
        let spend = Request::Spend {
            ring: RingName(place),
            known: RingVersion::default(),
            handle: place,
            spends: true,
            life: LIFE,
        };
        let ticket = Request::Ticket {
            name,
            claim,
            sealer: holder,
            server: "check".into(),
            spends: true,
            life: LIFE,
            valid_until: FAR,
        };
        match self.run("put", &put).await? {
            Answer::Stored => {}
            // Another daemon has revoked sessions meanwhile.
            Answer::Refused(Refused::Revised(_)) => {}
            _ => return wrong("put"),
        }
        self.run("find", &find(Mode::Join)).await?;
        self.run("release", &release).await?;
        self.run("find", &find(Mode::Resume(criteria))).await?;
        self.run("remove", &remove).await?;
        self.run("ticket", &ticket).await?;
        self.run("newest", &newest).await?;
        self.run("revocations", &Request::Revocations).await?;
        self.run("revoke", &revoke).await?;
        self.run("revise", &revise).await?;
        self.run("ring", &ring).await?;
        self.run("spend", &spend).await?;
        self.run("resign", &resign).await?;
        self.run_by("resign", &resign, By::Hash).await?;
        Ok(())
    }
}

fn field<'i>(info: &'i str, name: &str) -> Option<&'i str> {
    info.lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(key, _)| *key == name)
        .map(|(_, value)| value.trim())
}

/// Returns what the limits of the store's memory mean for sessions.
fn memory_warnings(info: &str) -> Vec<String> {
    let mut warnings = Vec::new();
    let policy = field(info, "maxmemory_policy").unwrap_or_default();
    if field(info, "maxmemory") == Some("0") {
        warnings.push(
            "the server has no `maxmemory`: sessions can take all memory of its machine".into(),
        );
    } else if policy == "noeviction" {
        warnings.push(
            "`maxmemory-policy` is noeviction: when the memory is used up, no session is stored until others expire; \
             volatile-lru makes room instead"
                .into(),
        );
    }
    if field(info, "aof_enabled") == Some("0") {
        warnings.push(
            "the server has no append-only file: its restart loses all sessions since its last snapshot".into(),
        );
    }
    match policy {
        "allkeys-lru" | "allkeys-lfu" | "allkeys-random" => warnings.push(format!(
            "`maxmemory-policy` is {policy}: it can evict the heartbeats of all daemons, and then no session that is \
             open is resumed; use volatile-lru"
        )),
        "volatile-random" | "volatile-ttl" => warnings.push(format!(
            "`maxmemory-policy` is {policy}: it evicts sessions that are in use; use volatile-lru"
        )),
        _ => {}
    }
    warnings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_of_memory_are_explained() {
        let info = |max: &str, policy: &str| {
            format!("# Memory\r\nmaxmemory:{max}\r\nmaxmemory_policy:{policy}\r\n")
        };
        for (max, policy, count) in [
            ("1000000", "volatile-lru", 0),
            ("1000000", "volatile-lfu", 0),
            ("1000000", "noeviction", 1),
            ("1000000", "allkeys-lru", 1),
            ("1000000", "volatile-ttl", 1),
            ("0", "noeviction", 1),
            ("0", "allkeys-random", 2),
        ] {
            let warnings = memory_warnings(&info(max, policy));
            assert_eq!(warnings.len(), count, "{max} {policy}: {warnings:?}");
        }
    }
}
