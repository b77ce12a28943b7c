//! The command `rbd-mirrorctl`: reads the command line, runs it, and ends with an exit code.
#![forbid(unsafe_code)]

use std::time::Duration;

use ctl::grammar::{self, Invocation};
use ctl::{Failure, commands, output};

/// How long the end waits for connections to be closed. One that takes longer has lost its cluster.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(3);

fn main() {
    let code = match run() {
        Ok(()) => 0,
        Err(failure) => {
            output::complain(&failure.to_string());
            failure.exit_code()
        }
    };
    rados::end_process(code, CLOSE_TIMEOUT)
}

fn run() -> Result<(), Failure> {
    let mut words = Vec::new();
    for arg in std::env::args_os().skip(1) {
        let word = arg.into_string().map_err(|arg| {
            Failure::new(ctl::failure::EXIT_USAGE, format!("the argument {arg:?} is not valid UTF-8"))
        })?;
        words.push(word);
    }
    let ceph_args = std::env::var("CEPH_ARGS").unwrap_or_default();
    let request = match grammar::parse(&ceph_args, words)? {
        Invocation::Print(text) => return output::put(&text),
        Invocation::Run(request) => request,
    };
    let runtime = tokio::runtime::Runtime::new().map_err(|e| Failure::io("start threads", &e))?;
    let outcome = runtime.block_on(commands::run(&request));
    // What is left are calls that wait for a lost cluster.
    runtime.shutdown_background();
    outcome
}
