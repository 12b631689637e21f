//! `blindai attest`

use std::process::ExitCode;

use anyhow::Result;
use blindai_client::ClientError;
use clap::Args;

use crate::connection::Trust;
use crate::output;

#[derive(Args)]
pub struct Arguments {
    /// The server's attested port.
    #[arg(value_name = "HOST:PORT", default_value = "localhost:50051")]
    server: String,
    #[command(flatten)]
    trust: Trust,
    /// Print JSON instead of a table.
    #[arg(long)]
    json: bool,
}

pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    match arguments.trust.connect(&arguments.server) {
        Ok(client) => {
            let report = client.report();
            if arguments.json {
                output::print_json(&report.to_json());
            } else {
                output::print(&report);
            }
            Ok(ExitCode::SUCCESS)
        }
        Err(error) => refused(arguments, error),
    }
}

// A rejection is an answer, not an accident: the table of checks says why.
fn refused(arguments: &Arguments, error: anyhow::Error) -> Result<ExitCode> {
    let rejection = error
        .downcast_ref::<ClientError>()
        .and_then(ClientError::rejection);
    let Some(rejection) = rejection else {
        return Err(error);
    };
    if arguments.json {
        output::print_json(&rejection.to_json());
    } else {
        output::print(rejection.table());
    }
    Ok(output::failure(&error))
}
