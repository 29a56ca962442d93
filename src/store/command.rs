//! Requests and answers as commands of Redis.

use redis::{Cmd, RedisError};
use tls_sessiond_core::fleet::Failure;
use tls_sessiond_store::{
    layout::Layout,
    script::{Answer, Request, Value},
};

/// How a script is named: by its hash, or by its text when the store does not know the hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum By {
    Hash,
    Text,
}

/// Returns the command that runs a request.
pub(super) fn command(request: &Request, layout: &Layout, by: By) -> Cmd {
    let script = request.script();
    let mut command = match by {
        By::Hash => redis::cmd("EVALSHA"),
        By::Text => redis::cmd("EVAL"),
    };
    command.arg(match by {
        By::Hash => &script.sha1,
        By::Text => &script.text,
    });
    let keys = request.keys(layout);
    command.arg(keys.len());
    for key in &keys {
        command.arg(key.as_slice());
    }
    request.each_argument(&mut |argument| _ = command.arg(argument));
    command
}

/// Returns whether the store does not know the hash of a script: after a restart, or SCRIPT FLUSH.
pub(super) fn is_unknown_script(err: &RedisError) -> bool {
    err.code() == Some("NOSCRIPT")
}

/// Errors with which the store refuses a script before it runs.
const NOT_RUN: [&str; 11] = [
    "OOM",
    "NOAUTH",
    "NOPERM",
    "LOADING",
    "MASTERDOWN",
    "BUSY",
    "NOREPLICAS",
    "READONLY",
    "MISCONF",
    "WRONGPASS",
    "NOSCRIPT",
];

/// Returns what an error says about the request.
pub(super) fn failure(err: &RedisError) -> Failure {
    if err.code().is_some_and(|code| NOT_RUN.contains(&code)) {
        Failure::NotRun
    } else {
        Failure::NoAnswer
    }
}

/// Reads an answer.
pub(super) fn answer(value: redis::Value) -> Result<Answer, Failure> {
    Answer::read(&self::value(value)).map_err(|_| Failure::NoAnswer)
}

fn value(from: redis::Value) -> Value {
    match from {
        redis::Value::BulkString(bytes) => Value::Bytes(bytes),
        redis::Value::SimpleString(text) => Value::Bytes(text.into_bytes()),
        redis::Value::Int(number) => Value::Integer(number),
        redis::Value::Array(all) => Value::List(all.into_iter().map(value).collect()),
        _ => Value::Other,
    }
}
