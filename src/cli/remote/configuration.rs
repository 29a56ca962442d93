//! `config print`: the configuration that the daemon runs, each value with its origin.

use tls_sessiond_proto as pb;

use super::{Console, Verdict, admin, failure::Failure, screen::Screen};

pub(super) async fn print(console: &Console) -> Result<Verdict, Failure> {
    let daemon = console.daemon().await?;
    let answer = daemon
        .call(admin(&daemon).get_config(pb::GetConfigRequest {}))
        .await?;
    console
        .printer
        .message(&answer, |screen| lines(screen, &answer))?;
    Ok(Verdict::Yes)
}

/// Writes `KEY = VALUE  # ORIGIN`, the origins below each other.
fn lines(screen: &mut Screen, config: &pb::GetConfigResponse) {
    let width = |value: &pb::ConfigValue| value.key.chars().count() + value.value.chars().count();
    let widest = config.values.iter().map(width).max().unwrap_or_default();
    for value in &config.values {
        let padding = " ".repeat(widest - width(value));
        screen.line(format!(
            "{} = {}{padding}  # {}",
            value.key, value.value, value.origin
        ));
    }
    screen.line(format!("# digest {}", config.digest));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_have_their_origins_beside_them() {
        let value = |key: &str, value: &str, origin: &str| pb::ConfigValue {
            key: key.into(),
            value: value.into(),
            origin: origin.into(),
        };
        let config = pb::GetConfigResponse {
            values: vec![
                value("limits.sockets", "10000", "default"),
                value("log.level", "\"info\"", "c.toml:3"),
            ],
            digest: "0123456789abcdef".into(),
        };
        let mut screen = Screen::new(false);
        lines(&mut screen, &config);
        assert_eq!(
            screen.into_text(),
            "limits.sockets = 10000  # default\n\
             log.level = \"info\"      # c.toml:3\n\
             # digest 0123456789abcdef\n"
        );
    }
}
