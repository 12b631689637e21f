//! `blindai top`: what a server does, by its metrics.
//!
//! They come from the public port, whose certificate is the host's: nobody vouches for these numbers.

mod metrics;
mod scrape;
mod view;

use std::io::IsTerminal as _;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};

use crate::output;
use scrape::{Scrape, Scraper};
use view::View;

#[derive(Args)]
pub struct Arguments {
    /// The server's public port.
    #[arg(value_name = "HOST:PORT", default_value = "localhost:50052")]
    server: String,
    /// Print what there is now and end. Rates and latencies are then those since the server started.
    #[arg(long)]
    once: bool,
    /// Seconds between two looks; the server writes its metrics anew once a second.
    #[arg(long, value_name = "SECONDS", default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=3600))]
    interval: u64,
}

pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let scraper = Scraper::new(&arguments.server)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("no runtime")?;
    let look = || runtime.block_on(scraper.look());
    if arguments.once {
        output::print(View::new(&look()?, None).text());
        return Ok(ExitCode::SUCCESS);
    }
    ensure!(
        std::io::stdout().is_terminal(),
        "standard output is no terminal: use --once"
    );
    let first = look()?;
    let mut terminal = ratatui::try_init().context("the terminal cannot be used")?;
    let watched = watch(&mut terminal, look, first, arguments);
    ratatui::restore();
    watched?;
    Ok(ExitCode::SUCCESS)
}

/// Draws until somebody wants to leave. A look that fails is told, and the next one tried.
fn watch(
    terminal: &mut ratatui::DefaultTerminal,
    look: impl Fn() -> Result<Scrape>,
    first: Scrape,
    arguments: &Arguments,
) -> Result<()> {
    let interval = Duration::from_secs(arguments.interval);
    let mut view = View::new(&first, None);
    let mut last = first;
    let mut problem = None;
    loop {
        terminal.draw(|frame| view.draw(frame, &arguments.server, problem.as_deref()))?;
        if left(interval)? {
            return Ok(());
        }
        match look() {
            Ok(scrape) => {
                view = View::new(&scrape, Some(&last));
                last = scrape;
                problem = None;
            }
            Err(error) => problem = Some(format!("{error:#}")),
        }
    }
}

/// Waits so long; whether q, Esc or Ctrl-C was pressed.
fn left(wait: Duration) -> Result<bool> {
    let until = Instant::now() + wait;
    loop {
        let rest = until.saturating_duration_since(Instant::now());
        if !event::poll(rest)? {
            return Ok(false);
        }
        match event::read()? {
            Event::Key(key) if key.kind == KeyEventKind::Press => match key.code {
                KeyCode::Char('q') | KeyCode::Esc => return Ok(true),
                KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => {
                    return Ok(true);
                }
                _ => {}
            },
            // Draw anew at once.
            Event::Resize(..) => return Ok(false),
            _ => {}
        }
    }
}
