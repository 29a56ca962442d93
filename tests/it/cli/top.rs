//! `top` in a real terminal, that of tmux.

use std::{fs, process::Stdio, time::Duration};

use tls_sessiond_proto as pb;
use tokio::{process::Command, time::sleep};

use crate::{binary::PATIENCE, harness::TestDaemon};

/// Time between two looks at the screen.
const POLL: Duration = Duration::from_millis(50);

/// A server of tmux with one window, in which a shell runs `top`, prints its status and the modes of
/// the terminal, and then waits. The server ends when this value is dropped.
struct Window {
    folder: tempfile::TempDir,
}

impl Window {
    /// Opens a window of 100 columns and 30 lines, and runs `top` with these options.
    async fn open(daemon: &TestDaemon, options: &str) -> Self {
        Self::open_with("", daemon, options).await
    }

    /// Opens a window as [`Self::open`] does, with further variables in the environment of `top`.
    async fn open_with(variables: &str, daemon: &TestDaemon, options: &str) -> Self {
        let window = Self {
            folder: tempfile::tempdir().unwrap(),
        };
        let top = format!(
            "{} top --interval 500ms --address tcp://{}{options}",
            env!("CARGO_BIN_EXE_tls-sessiond"),
            daemon.address
        );
        let id = window.folder.path().join("id");
        let top = format!(
            "sh -c 'echo $$ >{}; exec env {variables} {top}'",
            id.display()
        );
        let script = format!(
            "echo before; {top}; echo \"status=$?\"; stty -a | grep -c ' icanon'; exec sleep 1000"
        );
        window
            .tmux(&[
                "-f",
                "/dev/null",
                "new-session",
                "-d",
                "-x",
                "100",
                "-y",
                "30",
                &script,
            ])
            .await;
        window
    }

    /// Runs a command of tmux, and returns what it prints.
    async fn tmux(&self, args: &[&str]) -> String {
        let socket = self.folder.path().join("socket");
        let output = Command::new("tmux")
            .arg("-u")
            .arg("-S")
            .arg(socket)
            .args(args)
            .env_remove("TMUX")
            .env_remove("NO_COLOR")
            .env("SHELL", "/bin/sh")
            .env("TERM", "xterm-256color")
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output();
        let output = tokio::time::timeout(PATIENCE, output)
            .await
            .unwrap()
            .unwrap();
        assert!(output.status.success(), "{args:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    async fn keys(&self, keys: &[&str]) {
        let args: Vec<_> = ["send-keys"].iter().chain(keys).copied().collect();
        self.tmux(&args).await;
    }

    async fn resize(&self, columns: &str, lines: &str) {
        self.tmux(&["resize-window", "-x", columns, "-y", lines])
            .await;
    }

    async fn screen(&self) -> String {
        self.tmux(&["capture-pane", "-p"]).await
    }

    /// Waits until the screen has all these texts, and returns it.
    async fn shows(&self, texts: &[&str]) -> String {
        self.until(&format!("{texts:?}"), |screen| {
            texts.iter().all(|text| screen.contains(text))
        })
        .await
    }

    /// Waits until the screen is as wanted, and returns it.
    async fn until(&self, wanted: &str, holds: impl Fn(&str) -> bool) -> String {
        let mut screen = String::new();
        let wait = async {
            loop {
                screen = self.screen().await;
                if holds(&screen) {
                    break;
                }
                sleep(POLL).await;
            }
        };
        let waited = tokio::time::timeout(PATIENCE, wait).await;
        assert!(waited.is_ok(), "never {wanted}:\n{screen}");
        screen
    }

    /// Waits until `top` has ended with status 0, and checks that it left the terminal as it was.
    async fn left_as_found(&self) {
        let screen = self.shows(&["before\n", "status=0\n1\n"]).await;
        assert!(!screen.contains("HANDSHAKES"), "{screen}");
        let format = "#{alternate_on} #{cursor_flag}";
        let modes = self.tmux(&["display-message", "-p", format]).await;
        assert_eq!(modes.trim(), "0 1");
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        let socket = self.folder.path().join("socket");
        let killed = std::process::Command::new("tmux")
            .arg("-S")
            .arg(socket)
            .arg("kill-server")
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .status();
        drop(killed);
    }
}

#[tokio::test]
async fn screen_follows_keys_sizes_and_the_daemon() {
    let daemon = TestDaemon::by_real_time("").await;
    let window = Window::open(&daemon, "").await;
    window
        .shows(&[
            "tls-sessiond 0.1.0  up ",
            "  serving  digest ",
            "connections 0/",
            "no findings",
            "[1 contexts]",
            "HANDSHAKES/S, largest first",
            "default",
            " in the last ",
            "q quit",
        ])
        .await;

    window.keys(&["Tab"]).await;
    window.shows(&["[2 owners]", "UNCLOSED"]).await;
    let client = daemon.open(pb::Role::Client).await;
    let server = daemon.open(pb::Role::Server).await;
    window
        .shows(&["connections 2/", "local            2"])
        .await;
    window.keys(&[">"]).await;
    window.shows(&["UNCLOSED, largest first"]).await;
    window.keys(&["r"]).await;
    window.shows(&["UNCLOSED, smallest first"]).await;
    window.keys(&["3"]).await;
    window.shows(&["before  client", "before  server"]).await;
    daemon.handshake(&client, &server).await;
    window.shows(&["established  client"]).await;
    window.keys(&["4"]).await;
    window.shows(&["[4 long streams]", "LIMIT"]).await;
    window.keys(&["?"]).await;
    window.shows(&["q, Esc, ^C    quit"]).await;
    window.keys(&["1"]).await;
    window.shows(&["[1 contexts]"]).await;

    window.keys(&["p"]).await;
    window.shows(&["paused  tls-sessiond"]).await;
    daemon.open(pb::Role::Server).await;
    let screen = window.shows(&["paused  tls-sessiond"]).await;
    assert!(screen.contains("connections 2/"), "{screen}");
    window.keys(&["p"]).await;
    window.shows(&["connections 3/"]).await;

    window.resize("50", "10").await;
    let is_narrow = |screen: &str| {
        let widest = screen.lines().map(str::len).max();
        screen.contains("connections 3/") && !screen.contains("MISSES/S") && widest <= Some(50)
    };
    window.until("narrow", is_narrow).await;
    window.resize("30", "5").await;
    let small = window.shows(&["the terminal is too small"]).await;
    assert_eq!(small.trim(), "the terminal is too small");
    window.resize("100", "30").await;
    window.shows(&["MISSES/S", "default"]).await;

    window.keys(&["q"]).await;
    window.left_as_found().await;
    daemon.stop().await;
}

#[tokio::test]
async fn screen_says_that_the_daemon_is_away_and_comes_back() {
    let daemon = TestDaemon::by_real_time("[drain]\ntimeout = \"1ms\"\n").await;
    let address = daemon.address.clone();
    let window = Window::open(&daemon, " --timeout 2s").await;
    window.shows(&["  serving  digest "]).await;
    daemon.stop().await;
    window
        .shows(&["no status for ", "s: cannot reach the daemon"])
        .await;
    let seconds = |screen: &str| {
        let (_, rest) = screen.split_once("no status for ")?;
        rest.split_once("s: ")?.0.parse::<u64>().ok()
    };
    let first = seconds(&window.screen().await);
    window
        .until("later", |screen| seconds(screen) > first)
        .await;
    let next = TestDaemon::listening(&format!("[\"tcp://{address}\"]"), "").await;
    window.shows(&["  serving  digest "]).await;
    next.stop().await;
    window.shows(&["no status for "]).await;
    window.keys(&["q"]).await;
    window.left_as_found().await;
}

#[tokio::test]
async fn signals_leave_the_terminal_as_it_was() {
    let daemon = TestDaemon::by_real_time("").await;
    for signal in ["TERM", "HUP", "INT"] {
        let window = Window::open(&daemon, "").await;
        window.shows(&["  serving  digest "]).await;
        let id = fs::read_to_string(window.folder.path().join("id")).unwrap();
        let killed = Command::new("kill")
            .args([&format!("-{signal}"), id.trim()])
            .status()
            .await;
        assert!(killed.unwrap().success());
        window.left_as_found().await;
    }
    daemon.stop().await;
}

#[tokio::test]
async fn colours_follow_the_option() {
    let daemon = TestDaemon::by_real_time("").await;
    for (variables, option, wanted) in [
        ("", "auto", true),
        ("", "never", false),
        ("NO_COLOR=1", "auto", false),
        ("NO_COLOR=1", "always", true),
    ] {
        let option = format!(" --color {option}");
        let window = Window::open_with(variables, &daemon, &option).await;
        window.shows(&["  serving  digest "]).await;
        let screen = window.tmux(&["capture-pane", "-p", "-e"]).await;
        assert_eq!(
            screen.contains("\x1b[38;5;2mserving"),
            wanted,
            "{variables}{option}: {screen:?}"
        );
        window.keys(&["Escape"]).await;
        window.left_as_found().await;
    }
    daemon.stop().await;
}

/// A daemon that cannot be reached at first is an error, and the terminal is not touched.
#[tokio::test]
async fn first_call_must_succeed() {
    let mut daemon = TestDaemon::by_real_time("").await;
    // Port 1 of loopback has no listener.
    daemon.address = "127.0.0.1:1".into();
    let window = Window::open(&daemon, "").await;
    window
        .shows(&["before\n", "cannot reach the daemon", "status=69\n"])
        .await;
}
