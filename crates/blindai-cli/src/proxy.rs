//! `blindai proxy`
//!
//! 1. The keeper verifies the server, again and again. What it finds is the only thing that lets
//!    a connection carry bytes: see [`blindai_client::Connector`].
//! 2. A request comes in, in plain. The guard asks whether a program of this machine sent it, or a
//!    web page that somebody else wrote.
//! 3. It goes on over a connection that ends inside the verified TEE, as it is but for what belongs
//!    to the connection; the answer comes back in the same way. Neither is ever held whole.

mod forward;
mod guard;
mod keeper;
mod listen;
mod page;
mod refusal;
mod upstream;

use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use blindai_engine::Isolation;
use clap::Args;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use crate::connection::Connection;
use crate::output;
use guard::{Guard, Origin};
use keeper::Keeper;
use listen::Proxy;

#[derive(Args)]
pub struct Arguments {
    #[command(flatten)]
    connection: Connection,
    /// Where to listen, in plain HTTP/1.1 and HTTP/2.
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:8080")]
    listen: SocketAddr,
    /// Verify the server anew at least this often; always before its report ends.
    #[arg(
        long,
        value_name = "SECONDS",
        default_value_t = 600,
        value_parser = clap::value_parser!(u64).range(1..=7 * 24 * 3600)
    )]
    reverify: u64,
    /// Let web pages of this origin use the proxy: https://app.example.org. Can be repeated.
    #[arg(long, value_name = "ORIGIN")]
    allow_origin: Vec<Origin>,
    /// Answer to this name, too, besides localhost and loopback addresses. Can be repeated.
    #[arg(long, value_name = "NAME")]
    allow_host: Vec<String>,
    /// Listen where other machines reach it: they and whoever is in between read everything.
    #[arg(long)]
    dangerous_plain_text_beyond_this_machine: bool,
}

pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    arguments.check_listen()?;
    crate::serve::harden(Isolation::Filtered).map_err(anyhow::Error::msg)?;
    let runtime = tokio::runtime::Runtime::new().context("the event loop cannot start")?;
    runtime.block_on(serve(arguments))?;
    // What did not end while it drained ends here.
    runtime.shutdown_background();
    Ok(ExitCode::SUCCESS)
}

async fn serve(arguments: &Arguments) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let connector = Arc::new(arguments.connection.connector()?);
    let token = arguments.connection.token_in_file()?;
    let policy_id = arguments.connection.policy_id()?;
    let listener = TcpListener::bind(arguments.listen).await;
    let listener = listener.with_context(|| format!("cannot listen on {}", arguments.listen))?;
    let address = listener.local_addr()?;
    output::warn(format_args!(
        "blindai proxy: http://{address} forwards to {} when it is verified",
        connector.address()
    ));
    if token.is_some() {
        output::warn(
            "blindai proxy: requests that bring no token are sent with the one in the file",
        );
    }
    let keeper = Keeper::new(connector.clone(), arguments.reverify);
    let guard = arguments.guard();
    let proxy = Proxy::new(connector, keeper.next(), guard, policy_id, token.as_ref());
    let stop = async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    tokio::select! {
        () = listen::serve(listener, Arc::new(proxy), stop) => {}
        () = keeper.keep() => {}
    }
    Ok(())
}

impl Arguments {
    fn check_listen(&self) -> Result<()> {
        let beyond = !self.listen.ip().is_loopback();
        if beyond && !self.dangerous_plain_text_beyond_this_machine {
            bail!(
                "{} is reached from other machines, and what they send there is not encrypted · \
                 listen on 127.0.0.1 or [::1], or say --dangerous-plain-text-beyond-this-machine",
                self.listen
            );
        }
        if beyond {
            output::warn(format_args!(
                "WARNING: whoever reaches {}, or listens on the way to it, reads everything.",
                self.listen
            ));
        }
        Ok(())
    }

    fn guard(&self) -> Guard {
        let beyond = !self.listen.ip().is_loopback();
        Guard::new(&self.allow_host, beyond, &self.allow_origin)
    }
}
