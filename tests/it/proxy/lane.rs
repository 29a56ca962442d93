//! A lane: a listener of each proxy with one backend, for one test. So the counts of a lane are those of its test.

use std::{path::Path, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{sleep, timeout},
};

use super::fleet::{Backend, Fleet, PROXIES, fleet};
use crate::process::PATIENCE;

/// A lane as the configuration of the proxies has it.
pub(super) struct Plan {
    name: &'static str,
    pub(super) backend: Backend,
    /// Further keys of a proxy.
    pub(super) more: fn(&Path, usize) -> String,
}

const fn plan(name: &'static str, backend: Backend) -> Plan {
    Plan {
        name,
        backend,
        more: |_, _| String::new(),
    }
}

const fn http2(name: &'static str) -> Plan {
    Plan {
        name,
        backend: Backend::NginxHttp2,
        more: |_, _| "alpn = [\"h2\"]".into(),
    }
}

/// All lanes.
pub(super) const LANES: [Plan; 20] = [
    plan("openssl nginx", Backend::Nginx),
    plan("openssl python", Backend::Python),
    plan("curl nginx", Backend::NginxOnce),
    plan("curl python", Backend::Python),
    plan("curl large", Backend::Python),
    http2("curl http2"),
    plan("gnutls nginx", Backend::Nginx),
    plan("go nginx", Backend::Nginx),
    plan("go python", Backend::Python),
    http2("go http2"),
    plan("java nginx", Backend::Nginx),
    plan("java python", Backend::Python),
    plan("browser nginx", Backend::NginxOnce),
    http2("browser http2"),
    plan("browser websocket", Backend::Echo),
    http2("h2load"),
    plan("websocket", Backend::Echo),
    Plan {
        name: "certificates",
        backend: Backend::Nginx,
        // The last proxy trusts another authority as well.
        more: |folder, place| {
            let ca = ["ca.pem", "ca.pem", "both.pem"][place];
            client_auth("require", &folder.join(ca))
        },
    },
    Plan {
        name: "certificates that expire",
        backend: Backend::Nginx,
        more: |folder, _| client_auth("require", &folder.join("ca.pem")),
    },
    Plan {
        name: "certificates requested",
        backend: Backend::Nginx,
        more: |folder, _| client_auth("request", &folder.join("ca.pem")),
    },
];

fn client_auth(word: &str, ca: &Path) -> String {
    format!("client_auth = {word:?}\nclient_ca = {ca:?}")
}

/// Handshakes that a proxy has counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Handshakes {
    pub(super) full: u64,
    pub(super) resumed: u64,
}

/// Handshakes of each proxy.
pub(super) type Counted = [Handshakes; PROXIES];

/// Returns the counts of proxies that got connections in turns, from whether each was resumed.
pub(super) fn in_turns(resumed: &[bool]) -> Counted {
    let mut counts = Counted::default();
    for (place, &is_resumed) in resumed.iter().enumerate() {
        let at = &mut counts[place % PROXIES];
        match is_resumed {
            true => at.resumed += 1,
            false => at.full += 1,
        }
    }
    counts
}

/// The pause between two looks at the metrics.
const POLL: Duration = Duration::from_millis(10);
/// How often clients visit while lookups have no answer, and while they miss.
const ATTEMPTS_UNANSWERED: u32 = 10;
const ATTEMPTS_MISSED: u32 = 3;

/// Lookups of all tests.
#[derive(Default)]
struct Lookups {
    missed: u64,
    /// Those without an answer in time, or that were not sent.
    unanswered: u64,
}

/// A lane of the running fleet.
pub(super) struct Lane {
    pub(super) fleet: &'static Fleet,
    place: usize,
}

impl Lane {
    /// Returns a lane. The first call starts the fleet.
    pub(super) fn of(name: &str) -> Self {
        let place = LANES.iter().position(|plan| plan.name == name);
        Self {
            fleet: fleet(),
            place: place.unwrap_or_else(|| panic!("no lane is named {name}")),
        }
    }

    /// Returns the address of the lane at a proxy.
    pub(super) fn address(&self, proxy: usize) -> &'static str {
        &self.fleet.replicas[proxy].addresses[self.place]
    }

    /// Returns the port of the lane at a proxy.
    pub(super) fn port(&self, proxy: usize) -> &'static str {
        self.address(proxy).rsplit(':').next().unwrap()
    }

    /// Returns the addresses of the lane, in the order of the proxies.
    pub(super) fn addresses(&self) -> [&'static str; PROXIES] {
        std::array::from_fn(|proxy| self.address(proxy))
    }

    /// Returns the value of each series that begins with `metric{proxy="...",`, with its other labels.
    async fn series(&self, proxy: usize, metric: &str) -> Vec<(String, u64)> {
        let text = metrics(&self.fleet.replicas[proxy].admin).await;
        let start = format!("{metric}{{proxy=\"tls://{}\",", self.address(proxy));
        let lines = text.lines().filter_map(|line| line.strip_prefix(&start));
        lines
            .map(|line| {
                let (labels, value) = line.rsplit_once("} ").unwrap();
                (labels.to_owned(), value.parse().unwrap())
            })
            .collect()
    }

    /// Returns the count of one series at a proxy, or 0.
    pub(super) async fn count(&self, proxy: usize, metric: &str, labels: &str) -> u64 {
        let series = self.series(proxy, metric).await;
        let found = series.into_iter().find(|(found, _)| found == labels);
        found.map_or(0, |(_, value)| value)
    }

    /// Waits until the count of one series at a proxy is `value`.
    pub(super) async fn until_count(&self, proxy: usize, metric: &str, labels: &str, value: u64) {
        let wait = async {
            while self.count(proxy, metric, labels).await != value {
                sleep(POLL).await;
            }
        };
        let counted = timeout(PATIENCE, wait).await.is_ok();
        assert!(counted, "{metric} with {labels} is not {value}");
    }

    /// Returns the handshakes of one version of TLS at each proxy. A proxy counts a handshake before it forwards a byte, so a client
    /// that has its page is counted.
    pub(super) async fn handshakes(&self, version: &str) -> Counted {
        let mut all = Counted::default();
        for (proxy, at) in all.iter_mut().enumerate() {
            let metric = "tls_sessiond_proxy_handshakes_total";
            let count = async |kind| {
                let labels = format!("version=\"{version}\",kind=\"{kind}\"");
                self.count(proxy, metric, &labels).await
            };
            (at.full, at.resumed) = (count("full").await, count("resumed").await);
        }
        all
    }

    /// Returns the number of lookups that all proxies counted, by their result.
    async fn lookups(&self) -> Lookups {
        let mut lookups = Lookups::default();
        for replica in &self.fleet.replicas {
            let text = metrics(&replica.admin).await;
            let lines = text.lines();
            for line in lines.filter(|line| line.starts_with("tls_sessiond_proxy_lookups_total{")) {
                let (labels, value) = line.rsplit_once("\"} ").unwrap();
                let value: u64 = value.parse().unwrap();
                match labels.rsplit('"').next().unwrap() {
                    "hit" => {}
                    "miss" => lookups.missed += value,
                    _ => lookups.unanswered += value,
                }
            }
        }
        lookups
    }

    /// Runs `visit`, and gives `check` its result and the handshakes that the proxies counted meanwhile.
    ///
    /// A lookup without an answer in time is a full handshake, which is no fault, and a client may return before its session is in the
    /// daemon. Both happen on a busy machine. So a visit whose check says no is repeated, as long as such lookups explain it.
    pub(super) async fn check<R>(
        &self,
        version: &str,
        visit: impl AsyncFn() -> R,
        check: impl Fn(&R, &Counted) -> Result<(), String>,
    ) {
        for attempt in 1.. {
            let (before, lookups) = (self.handshakes(version).await, self.lookups().await);
            let seen = visit().await;
            let mut counted = self.handshakes(version).await;
            for (counted, before) in counted.iter_mut().zip(before) {
                counted.full -= before.full;
                counted.resumed -= before.resumed;
            }
            let Err(fault) = check(&seen, &counted) else {
                return;
            };
            let after = self.lookups().await;
            let (missed, unanswered) = (
                after.missed - lookups.missed,
                after.unanswered - lookups.unanswered,
            );
            println!(
                "attempt {attempt}, {missed} lookups missed, {unanswered} unanswered: {fault}"
            );
            let may_repeat = (unanswered > 0 && attempt < ATTEMPTS_UNANSWERED)
                || (missed > 0 && attempt < ATTEMPTS_MISSED);
            assert!(may_repeat, "TLS {version}: {fault}");
        }
    }

    /// Runs `visit`, which connects to the proxies in turns and returns whether each connection was resumed, as the client says.
    /// Asserts that, and that the proxies say the same.
    pub(super) async fn resumes(
        &self,
        version: &str,
        expected: &[bool],
        visit: impl AsyncFn() -> Vec<bool>,
    ) {
        self.check(version, visit, |seen, counted| {
            match seen == expected && *counted == in_turns(expected) {
                true => Ok(()),
                false => Err(format!("the client: {seen:?}, the proxies: {counted:?}")),
            }
        })
        .await;
    }

    /// Waits until all connections have ended. Asserts that a close_notify ended each of them, so that its session stayed.
    pub(super) async fn all_closed(&self) {
        let mut connections = 0;
        for version in ["1.2", "1.3"] {
            for at in self.handshakes(version).await {
                connections += at.full + at.resumed;
            }
        }
        assert_ne!(connections, 0);
        let mut ends = Vec::new();
        let wait = async {
            loop {
                ends.clear();
                for proxy in 0..PROXIES {
                    ends.extend(self.series(proxy, "tls_sessiond_proxy_ends_total").await);
                }
                ends.retain(|(_, count)| *count > 0);
                if ends.iter().map(|(_, count)| count).sum::<u64>() == connections {
                    return;
                }
                sleep(POLL).await;
            }
        };
        let ended = timeout(PATIENCE, wait).await.is_ok();
        assert!(ended, "{connections} connections, but {ends:?}");
        let closed = ends.iter().all(|(end, _)| end == "end=\"closed\"");
        assert!(closed, "{ends:?}");
    }
}

/// Returns the metrics at an address. The request is one of HTTP/1.0, whose answer has no chunks.
async fn metrics(address: &str) -> String {
    let fetch = async {
        let mut socket = TcpStream::connect(address).await.unwrap();
        let request = b"GET /metrics HTTP/1.0\r\nHost: localhost\r\n\r\n";
        socket.write_all(request).await.unwrap();
        let mut text = String::new();
        socket.read_to_string(&mut text).await.unwrap();
        text
    };
    let text = timeout(PATIENCE, fetch).await.expect("no metrics");
    assert!(text.contains("\n# EOF"), "{text}");
    text
}
