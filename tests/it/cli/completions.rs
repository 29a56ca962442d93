//! Completion scripts in real shells.

use std::fs;

use super::run;
use crate::process;

/// Shells, each with a script that loads a file and prints what completes `tls-sessiond hea`, or the
/// function that does.
const SHELLS: [(&str, &[&str], &str, &str); 3] = [
    (
        "bash",
        &["--norc", "-c"],
        "source \"$0\"; COMP_WORDS=(tls-sessiond hea); COMP_CWORD=1; \
         $(complete -p tls-sessiond | sed -n 's/.*-F \\([^ ]*\\) .*/\\1/p') tls-sessiond hea tls-sessiond; \
         echo \"${COMPREPLY[@]}\"",
        "health\n",
    ),
    (
        "zsh",
        &["-f", "-c"],
        "autoload -Uz compinit; compinit -D -u; source \"$0\"; print -r -- $_comps[tls-sessiond]",
        "_tls-sessiond\n",
    ),
    (
        "fish",
        &["--no-config", "-c"],
        "source $argv[1]; complete -C 'tls-sessiond hea'",
        "health\tAsk whether",
    ),
];

#[tokio::test]
async fn completion_scripts_load_in_their_shells() {
    let folder = tempfile::tempdir().unwrap();
    for (shell, options, script, completed) in SHELLS {
        let file = folder.path().join(shell);
        fs::write(&file, run(&["completions", shell]).await.ok()).unwrap();
        let mut command = tokio::process::Command::new(shell);
        command
            .env("HOME", folder.path())
            .args(options)
            .arg(script)
            .arg(&file);
        let (said, good) = process::run(&mut command, "").await;
        assert!(good && said.starts_with(completed), "{shell}: {said}");
    }
}
