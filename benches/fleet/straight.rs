//! The scripts of the store, called by redis-rs without a daemon.

use std::time::Instant;

use futures_util::{StreamExt, future::join_all, stream};
use redis::{
    AsyncConnectionConfig, Cmd, IntoConnectionInfo, aio::MultiplexedConnection,
    io::tcp::TcpSettings,
};
use tls_sessiond_store::{
    layout::{Bucket, Fit, Layout, Name},
    script::{Claim, Criteria, Expected, Head, Holder, Mode, Request, Token},
    seal::SealingKeys,
};
use tls_sessiond_types::{Role, Version};

use crate::{DATA, DEADLINE, Uses};

const FOREVER: u64 = u64::MAX >> 11;
const HOUR: u64 = 3_600_000;

pub(crate) struct Straight {
    connection: MultiplexedConnection,
    layout: Layout,
    keys: SealingKeys,
    claims: Vec<Claim>,
}

fn head(uses: Uses) -> Head {
    Head {
        single_use: uses == Uses::Take,
        version: Version::Tls13,
        cipher_suite: 0,
        fit: Fit([1; 8]),
    }
}

impl Straight {
    /// Connects, and writes a heartbeat into each bucket.
    pub(crate) async fn connect(port: u16) -> Self {
        let info = format!("redis://127.0.0.1:{port}")
            .into_connection_info()
            .unwrap();
        let info = info.set_tcp_settings(TcpSettings::default().set_nodelay(true));
        let config = AsyncConnectionConfig::new().set_response_timeout(Some(DEADLINE));
        let connection = redis::Client::open(info)
            .unwrap()
            .get_multiplexed_async_connection_with_config(&config)
            .await
            .unwrap();
        let mut straight = Self {
            connection,
            layout: Layout::new("straight").unwrap(),
            keys: SealingKeys::read(&"ab".repeat(32)).unwrap(),
            claims: Vec::new(),
        };
        for bucket in Bucket::all() {
            let holder = Holder([9; 8]);
            let beat = Request::Beat {
                bucket,
                holder,
                life: HOUR,
                expected: Expected::Any,
                valid_until: FOREVER,
            };
            let answer = straight.run_text(&beat).await;
            let redis::Value::Array(parts) = answer else {
                panic!("{answer:?}")
            };
            let deadline = redis::from_redis_value::<String>(parts[2].clone()).unwrap();
            straight.claims.push(Claim {
                holder,
                deadline: deadline.parse().unwrap(),
                revision: 0,
            });
        }
        straight
    }

    fn command(&self, request: &Request, name: &str, script: &str) -> Cmd {
        let keys = request.keys(&self.layout);
        let mut command = redis::cmd(name);
        command.arg(script).arg(keys.len()).arg(keys);
        command.arg(request.arguments());
        command
    }

    async fn run_text(&self, request: &Request) -> redis::Value {
        let command = self.command(request, "EVAL", &request.script().text);
        command
            .query_async(&mut self.connection.clone())
            .await
            .unwrap()
    }

    async fn run(&self, request: &Request) -> redis::Value {
        let command = self.command(request, "EVALSHA", &request.script().sha1);
        self.connection
            .clone()
            .send_packed_command(&command)
            .await
            .unwrap()
    }

    fn name(&self, number: usize) -> (Name, Claim) {
        let name = self
            .keys
            .names()
            .name(b"scope", Role::Server, &number.to_be_bytes());
        (name, self.claims[name.bucket().index()])
    }

    pub(crate) async fn put(&self, numbers: std::ops::Range<usize>, uses: Uses) {
        stream::iter(numbers)
            .for_each_concurrent(64, |number| async move {
                let (name, claim) = self.name(number);
                let put = Request::Put {
                    name,
                    claim,
                    token: Token(1),
                    head: head(uses),
                    // What a session of the daemon has when it is sealed.
                    sealed: vec![7; DATA + 150],
                    valid_until: FOREVER,
                    life: HOUR,
                    pool: None,
                };
                self.run_text(&put).await;
                let release = Request::Release {
                    holder: claim.holder,
                    holds: vec![(name, Token(1))],
                };
                self.run_text(&release).await;
            })
            .await;
        // The store knows the script by its hash afterwards.
        let (name, _) = self.name(usize::MAX);
        self.run_text(&self.lookup(name, uses)).await;
    }

    /// Returns the bytes that the store uses.
    pub(crate) async fn used_memory(&self) -> u64 {
        let mut command = redis::cmd("INFO");
        command.arg("memory");
        let info: String = command
            .query_async(&mut self.connection.clone())
            .await
            .unwrap();
        let line = info
            .lines()
            .find_map(|line| line.strip_prefix("used_memory:"));
        line.unwrap().trim().parse().unwrap()
    }

    fn lookup(&self, name: Name, uses: Uses) -> Request {
        Request::Find {
            name,
            claim: self.claims[name.bucket().index()],
            token: Token(2),
            mode: match uses {
                Uses::Hold => Mode::Join,
                Uses::Take | Uses::Read => Mode::Lookup(Criteria {
                    fit: head(uses).fit,
                    versions: vec![Version::Tls12, Version::Tls13],
                    cipher_suite: None,
                }),
            },
            valid_until: FOREVER,
        }
    }

    /// Looks a session up. A miss ends the run.
    pub(crate) async fn find(&self, number: usize, uses: Uses) {
        let (name, _) = self.name(number);
        let answer = self.run(&self.lookup(name, uses)).await;
        let redis::Value::Array(parts) = answer else {
            panic!("{answer:?}")
        };
        assert_eq!(parts.len(), 4, "a miss: {parts:?}");
    }

    /// Holds these sessions, this many at a time. Returns the seconds of one.
    pub(crate) async fn hold(&self, in_flight: usize, numbers: std::ops::Range<usize>) -> f64 {
        let count = numbers.len();
        let begun = Instant::now();
        for some in numbers.collect::<Vec<_>>().chunks(in_flight) {
            let holds = some.iter().map(|number| self.find(*number, Uses::Hold));
            join_all(holds).await;
        }
        begun.elapsed().as_secs_f64() / count as f64
    }
}
