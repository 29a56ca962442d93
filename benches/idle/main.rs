//! What a daemon costs that has nothing to do, with metrics and status page on: its start, its
//! memory, and its CPU time.
//!
//! `cargo bench --bench idle`. It takes about a minute and a half.

#![expect(clippy::unwrap_used, reason = "a failure ends the run")]

use std::{
    fs,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};

#[path = "../shared/cpu.rs"]
#[allow(dead_code, reason = "each bench has its own clocks")]
mod cpu;
#[path = "../shared/daemon.rs"]
#[allow(dead_code, reason = "this bench makes no call")]
mod process;

use process::Daemon;

const STARTS: usize = 20;
const IDLE: Duration = Duration::from_secs(60);
/// Goals: CPU time of a start in milliseconds, memory in MiB, CPU in per cent of a core.
const START_CPU: f64 = 60.0;
const MEMORY: f64 = 24.0;
const IDLE_CPU: f64 = 0.1;

/// Starts a daemon. Returns it, the time until it was ready and the CPU time of that, in
/// milliseconds.
fn start(config: &std::path::Path) -> (Daemon, f64, f64) {
    let begun = Instant::now();
    // The greeting is printed once the daemon is ready.
    let daemon = Daemon::run(config);
    let ready = begun.elapsed().as_secs_f64() * 1e3;
    let cpu = cpu::process(daemon.id()) * 1e3;
    (daemon, ready, cpu)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn resident(id: u32) -> f64 {
    let status = fs::read_to_string(format!("/proc/{id}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let kib = line.unwrap().split_whitespace().nth(1).unwrap();
    kib.parse::<f64>().unwrap() / 1024.0
}

fn verdict(value: f64, most: f64) -> &'static str {
    if value <= most { "met" } else { "missed" }
}

fn main() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("daemon.toml");
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    let admin = free.local_addr().unwrap();
    drop(free);
    let text = format!(
        "[listen]\napi = [\"tcp://127.0.0.1:0\", \"unix://{}\"]\nadmin = \"tcp://{admin}\"\n",
        folder.path().join("api.sock").display()
    );
    fs::write(&config, text).unwrap();
    let (mut ready, mut cpus) = (Vec::new(), Vec::new());
    for _ in 0..STARTS {
        let (_daemon, took, cpu) = start(&config);
        ready.push(took);
        cpus.push(cpu);
    }
    let (ready, cpu) = (median(ready), median(cpus));
    println!(
        "start to ready: {ready:.1} ms, {cpu:.1} ms of CPU, medians of {STARTS}; goal: at most {START_CPU} ms of CPU: {}",
        verdict(cpu, START_CPU)
    );
    let (daemon, ..) = start(&config);
    // One scrape, so that what it needs is in memory.
    let mut socket = TcpStream::connect(admin).unwrap();
    let request = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    socket.write_all(request).unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let before = cpu::process(daemon.id());
    thread::sleep(IDLE);
    let used = (cpu::process(daemon.id()) - before) / IDLE.as_secs_f64() * 100.0;
    let memory = resident(daemon.id());
    println!(
        "idle memory: {memory:.1} MiB; goal: at most {MEMORY} MiB: {}",
        verdict(memory, MEMORY)
    );
    println!(
        "idle CPU over {} s: {used:.3} % of a core; goal: at most {IDLE_CPU} %: {}",
        IDLE.as_secs(),
        verdict(used, IDLE_CPU)
    );
}
