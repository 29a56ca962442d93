//! Envoy: a secret in a file that it watches, and the version that its admin address shows.

use std::{path::PathBuf, time::Duration};

use aws_lc_rs::digest::{Context, SHA256};
use serde_json::Value;
use tokio::time::{sleep, timeout};
use zeroize::Zeroizing;

use super::{
    super::super::{failure::Failure, http::LocalServer},
    order::KeyOrder,
    replace::FileRules,
    sink::NotRun,
};

/// How often the admin address is asked.
const LOOK: Duration = Duration::from_millis(100);
/// Longest answer of the admin address in bytes.
const ANSWER_MAX: usize = 64 << 20;
/// The secrets alone, of all that Envoy runs.
const DUMP: &str = "/config_dump?resource=dynamic_active_secrets";

/// One Envoy on this host.
pub(super) struct Envoy {
    file: PathBuf,
    rules: FileRules,
    /// Its admin address. `None`: the agent cannot see what it runs.
    admin: Option<LocalServer>,
    wait: Duration,
    settle: Duration,
}

/// Parses the admin address of Envoy.
///
/// # Errors
/// [`Failure::Usage`]: it is not of the form `http://HOST:PORT`, or is not on this host.
pub(super) fn admin_address(text: &str) -> Result<LocalServer, Failure> {
    LocalServer::parse(text).ok_or_else(|| {
        Failure::Usage(format!(
            "invalid --admin {text:?}: expected http://127.0.0.1:PORT, or another address of loopback"
        ))
    })
}

impl Envoy {
    pub(super) fn new(
        file: PathBuf,
        rules: FileRules,
        admin: Option<LocalServer>,
        wait: Duration,
        settle: Duration,
    ) -> Self {
        Self {
            file,
            rules,
            admin,
            wait,
            settle,
        }
    }

    /// Writes the secret.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(super) fn write(&self, order: &KeyOrder) -> Result<(), NotRun> {
        let secret = secret(order, &version(order));
        self.rules
            .replace(&[(self.file.clone(), secret.as_bytes())])
    }

    /// Waits until Envoy shows the version of the file.
    ///
    /// # Errors
    /// It does not, in time.
    pub(super) async fn shows(&self, order: &KeyOrder) -> Result<(), NotRun> {
        let version = version(order);
        let Some(admin) = &self.admin else {
            sleep(self.settle).await;
            return Ok(());
        };
        // The reason is that of the last answer.
        let mut why = String::new();
        let shown = async {
            loop {
                match shown_version(admin, &order.ring).await {
                    Ok(Some(shown)) if shown == version => return,
                    Ok(Some(_)) => why = "it still has an earlier version of the secret".into(),
                    Ok(None) => why = format!("it has no secret named {}", order.ring),
                    Err(err) => why = err,
                }
                sleep(LOOK).await;
            }
        };
        let shown = timeout(self.wait, shown).await;
        shown.map_err(|_| {
            NotRun(format!(
                "Envoy at {admin} does not show {} within {:?}: {why}",
                self.file.display(),
                self.wait
            ))
        })
    }
}

/// Returns the version of the secret that Envoy runs.
async fn shown_version(admin: &LocalServer, ring: &str) -> Result<Option<String>, String> {
    let (status, text) = admin.get(DUMP, ANSWER_MAX).await?;
    if !(200..300).contains(&status) {
        return Err(format!("it answers with the status {status}"));
    }
    let dump: Value =
        serde_json::from_slice(&text).map_err(|_| "its answer is not JSON".to_owned())?;
    Ok(version_in(&dump, ring))
}

/// Returns the version of a secret in a dump of the configuration.
fn version_in(dump: &Value, ring: &str) -> Option<String> {
    let configs = dump["configs"].as_array()?;
    let secrets = configs.iter().flat_map(|config| {
        // Without the filter of `DUMP`, secrets stand in a list.
        let list = config["dynamic_active_secrets"].as_array();
        list.map_or(std::slice::from_ref(config), Vec::as_slice)
    });
    let mut named = secrets.filter(|secret| secret["name"] == ring);
    named.find_map(|secret| secret["version_info"].as_str().map(str::to_owned))
}

/// Returns the version of a secret: the epochs, and a digest of the keys. Envoy does not show another version
/// of a secret that has not changed, so equal keys need equal versions, also those of another agent.
fn version(order: &KeyOrder) -> String {
    let mut digest = Context::new(&SHA256);
    let mut version = String::new();
    for key in &order.keys {
        digest.update(&key.bytes);
        version += &format!("{}-", key.epoch);
    }
    let digest = digest.finish();
    let digits = digest.as_ref()[..8].iter();
    digits.fold(version, |version, byte| format!("{version}{byte:02x}"))
}

/// Returns the file: a `DiscoveryResponse` with one secret.
fn secret(order: &KeyOrder, version: &str) -> Zeroizing<String> {
    const TYPE: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";
    // With its final capacity, so that no shorter copy is left behind.
    let mut text = Zeroizing::new(String::with_capacity(1024 + 256 * order.keys.len()));
    text.push_str(&format!(
        "{{\"version_info\":\"{version}\",\"resources\":[{{\"@type\":\"{TYPE}\",\"name\":{},\"session_ticket_keys\":{{\"keys\":[",
        Value::from(order.ring.as_str())
    ));
    for (place, key) in order.keys.iter().enumerate() {
        let comma = if place == 0 { "" } else { "," };
        text.push_str(comma);
        text.push_str("{\"inline_bytes\":\"");
        text.push_str(&key.base64());
        text.push_str("\"}");
    }
    text.push_str("]}}]}\n");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_is_found_in_both_forms_of_a_dump() {
        let secret = serde_json::json!({"name": "web", "version_info": "7-1"});
        let other = serde_json::json!({"name": "other", "version_info": "1"});
        let filtered = serde_json::json!({"configs": [other, secret]});
        let whole =
            serde_json::json!({"configs": [{"x": 1}, {"dynamic_active_secrets": [other, secret]}]});
        assert_eq!(version_in(&filtered, "web").as_deref(), Some("7-1"));
        assert_eq!(version_in(&whole, "web").as_deref(), Some("7-1"));
        assert_eq!(version_in(&whole, "absent"), None);
        assert_eq!(version_in(&serde_json::json!([]), "web"), None);
    }
}
