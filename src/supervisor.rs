//! The service manager that has started this process, for example systemd: it is told when the daemon is
//! ready, reloads, stops, and that it lives (sd_notify(3)).
//!
//! A thread sends the messages in order, so a service manager that takes none delays nothing.

use std::{
    fmt,
    sync::mpsc::{SyncSender, TrySendError, sync_channel},
    thread,
    time::Duration,
};

use sd_notify::NotifyState;

/// Most messages that wait. A manager that takes none so long has forgotten this process.
const WAITING_MAX: usize = 64;

/// What the thread does.
enum Order {
    /// Sends assignments of sd_notify(3), together.
    Send(Vec<String>),
    /// Says that everything before it was sent.
    Tell(SyncSender<()>),
}

/// The service manager. Clones tell the same one. Without one, nothing is sent.
#[derive(Clone, Default)]
pub struct Supervisor(Option<SyncSender<Order>>);

impl fmt::Debug for Supervisor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Supervisor")
    }
}

impl Supervisor {
    /// Returns the manager that `NOTIFY_SOCKET` names, if it names one.
    pub fn of_environment() -> Self {
        if std::env::var_os("NOTIFY_SOCKET").is_none() {
            return Self::default();
        }
        let (sender, orders) = sync_channel(WAITING_MAX);
        let carry_out = move || orders.into_iter().fold(true, carry_out);
        match thread::Builder::new()
            .name("supervisor".into())
            .spawn(carry_out)
        {
            Ok(_) => Self(Some(sender)),
            Err(err) => {
                tracing::error!(%err, "cannot start the thread that tells the service manager");
                Self::default()
            }
        }
    }

    /// Tells that the daemon serves: after its start, and after each reload. `status` is one line for
    /// people.
    pub fn ready(&self, status: &str) {
        self.send(vec![NotifyState::Ready.to_string(), line(status)]);
    }

    /// Tells that a reload begins. [`Self::ready`] ends it, also if it is refused.
    pub fn reloading(&self) {
        let mut message = vec![NotifyState::Reloading.to_string()];
        // systemd 253 and later compares this time with that of its SIGHUP.
        if let Ok(now) = NotifyState::monotonic_usec_now() {
            message.push(now.to_string());
        }
        message.push(line("reloading the configuration"));
        self.send(message);
    }

    /// Tells that the daemon stops, and that it may take this long.
    pub fn stopping(&self, at_most: Duration) {
        // The unit may have a shorter time than the daemon's configuration.
        let extended = format!("EXTEND_TIMEOUT_USEC={}", at_most.as_micros());
        let status = format!("draining, for at most {} s", at_most.as_secs());
        self.send(vec![
            NotifyState::Stopping.to_string(),
            extended,
            line(&status),
        ]);
    }

    /// Tells what the daemon does, in one line for people.
    pub fn status(&self, status: &str) {
        self.send(vec![line(status)]);
    }

    /// Tells that the daemon lives.
    pub fn alive(&self) {
        self.send(vec![NotifyState::Watchdog.to_string()]);
    }

    /// Returns how often the manager wants to hear that the daemon lives: half of the time after which
    /// it ends the process. `None`: it does not watch.
    pub fn watches(&self) -> Option<Duration> {
        self.0.as_ref()?;
        let limit = sd_notify::watchdog_enabled()?;
        (!limit.is_zero()).then_some(limit / 2)
    }

    /// Waits until the manager has taken everything, for at most `at_most`.
    pub fn flush(&self, at_most: Duration) {
        let Some(sender) = &self.0 else { return };
        let (tells, told) = sync_channel(1);
        if sender.try_send(Order::Tell(tells)).is_ok() {
            // A manager that takes nothing does not hold up the end.
            let _ = told.recv_timeout(at_most);
        }
    }

    fn send(&self, message: Vec<String>) {
        let Some(sender) = &self.0 else { return };
        match sender.try_send(Order::Send(message)) {
            Ok(()) => {}
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {
                tracing::debug!("a message for the service manager was dropped");
            }
        }
    }
}

/// Carries out one order. `works`: the manager took the last message. Returns whether it takes them now.
fn carry_out(works: bool, order: Order) -> bool {
    let message = match order {
        Order::Send(message) => message,
        Order::Tell(tells) => {
            // The end of the process may have stopped to wait.
            let _ = tells.try_send(());
            return works;
        }
    };
    let states: Vec<_> = message
        .iter()
        .map(|text| NotifyState::Custom(text))
        .collect();
    let sent = sd_notify::notify(&states);
    if let (true, Err(err)) = (works, &sent) {
        tracing::warn!(%err, "the service manager (NOTIFY_SOCKET) does not take messages");
    }
    sent.is_ok()
}

/// Returns a status as one line: a line break would begin another message.
fn line(status: &str) -> String {
    NotifyState::Status(&status.replace(char::is_control, " ")).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_is_one_line() {
        assert_eq!(line("refused: a\nREADY=1"), "STATUS=refused: a READY=1");
    }
}
