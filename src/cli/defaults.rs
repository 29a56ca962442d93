//! `config defaults`: a complete commented configuration.
//!
//! Its one source is the first TOML block of docs/configuration.md. Tests compare that block with
//! the built-in defaults, key by key.

/// The reference of the configuration.
const REFERENCE: &str = include_str!("../../docs/configuration.md");

/// Returns a TOML file that has every key with its default, with a comment for each.
pub(super) fn file() -> &'static str {
    const BEGIN: &str = "```toml\n";
    let block = REFERENCE.split_once(BEGIN).map_or("", |(_, block)| block);
    block.split_once("```").map_or(block, |(block, _)| block)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_defaults_are_a_whole_configuration() {
        let table: toml::Table = super::file().parse().unwrap();
        for key in ["listen", "limits", "drain", "log", "context"] {
            assert!(table.contains_key(key), "{key}");
        }
    }
}
