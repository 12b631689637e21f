//! The `blindai` command.
#![forbid(unsafe_code)]

mod attest;
mod bench;
mod collateral;
mod connection;
mod ear;
mod file;
mod infer;
mod launch;
mod log;
mod measure;
mod models;
mod npy;
mod output;
mod policy;
mod proxy;
mod receipt;
mod serve;
mod subject;
mod time;
mod top;
mod verify;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Confidential AI inference: run models where nobody can look, and prove it.
#[derive(Parser)]
#[command(name = "blindai", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Start a server.
    Serve(serve::Arguments),
    /// Verify a server and show what was checked. Exit code 0 only when it is trusted.
    Attest(attest::Arguments),
    /// Verify evidence that somebody kept. Exit code 0 only when it is trusted.
    Verify(verify::Arguments),
    /// Verify or show receipts of inferences and uploads.
    Receipt(receipt::Arguments),
    /// Write, compare and compute what a server must prove.
    Policy(policy::Arguments),
    /// Upload, list, show or delete models.
    Models(models::Arguments),
    /// Run a model on .npy files.
    Infer(infer::Arguments),
    /// Forward plain HTTP and gRPC of this machine to a server that is verified first.
    Proxy(proxy::Arguments),
    /// Put a model under load and measure latency and throughput.
    Bench(bench::Arguments),
    /// Watch what a server does, by its metrics.
    Top(top::Arguments),
}

fn main() -> ExitCode {
    // Workers are this same program. They must not get as far as reading arguments or files.
    if std::env::args_os()
        .nth(1)
        .is_some_and(|argument| argument == blindai_engine::WORKER_ARGUMENT)
    {
        return blindai_engine::worker_main();
    }
    let result = match Cli::parse().command {
        Command::Serve(arguments) => return serve::run(&arguments),
        Command::Attest(arguments) => attest::run(&arguments),
        Command::Verify(arguments) => verify::run(&arguments),
        Command::Receipt(arguments) => receipt::run(&arguments),
        Command::Policy(arguments) => policy::run(&arguments),
        Command::Models(arguments) => models::run(arguments),
        Command::Infer(arguments) => infer::run(&arguments),
        Command::Proxy(arguments) => proxy::run(&arguments),
        Command::Bench(arguments) => bench::run(&arguments),
        Command::Top(arguments) => top::run(&arguments),
    };
    result.unwrap_or_else(|error| output::failure(&error))
}
