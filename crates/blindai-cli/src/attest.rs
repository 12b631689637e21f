//! `blindai attest`

use std::process::ExitCode;

use anyhow::Result;
use blindai_client::ClientError;
use clap::Args;

use crate::connection::Trust;
use crate::output;

#[derive(Args)]
pub struct Arguments {
    /// The server's attested port [default: localhost:50051].
    #[arg(value_name = "HOST:PORT")]
    address: Option<String>,
    /// The same, as the other commands take it.
    #[arg(long, value_name = "HOST:PORT", conflicts_with = "address")]
    server: Option<String>,
    #[command(flatten)]
    trust: Trust,
    /// Print JSON instead of a table.
    #[arg(long)]
    json: bool,
}

pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let given = arguments.address.as_ref().or(arguments.server.as_ref());
    let server = given.map_or("localhost:50051", String::as_str);
    match arguments.trust.connect(server) {
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
