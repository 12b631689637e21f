//! Man pages and shell completions, from what parses the arguments. They are written by a test, so that
//! no program that is measured carries what writes them:
//!
//! ```text
//! BLINDAI_MANUAL=$PWD/target/manual cargo test --locked -p blindai-cli manual
//! ```

use std::path::{Path, PathBuf};

use clap::CommandFactory as _;
use clap_complete::Shell;

use crate::Cli;

#[test]
fn every_command_has_a_page_and_is_completed() {
    let scratch = tempfile::tempdir().unwrap();
    let asked = std::env::var_os("BLINDAI_MANUAL").map(PathBuf::from);
    let folder = asked.as_deref().unwrap_or(scratch.path());
    write(folder).unwrap();
    let read = |name: &str| std::fs::read_to_string(folder.join(name)).unwrap();
    for command in Cli::command().get_subcommands() {
        let name = command.get_name();
        let page = read(&format!("blindai-{name}.1"));
        assert!(page.contains("DESCRIPTION"), "{name}");
        for completions in ["blindai.bash", "blindai.fish", "_blindai"] {
            assert!(read(completions).contains(name), "{completions}: {name}");
        }
    }
}

fn write(folder: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(folder)?;
    clap_mangen::generate_to(Cli::command(), folder)?;
    for shell in [Shell::Bash, Shell::Fish, Shell::Zsh] {
        clap_complete::generate_to(shell, &mut Cli::command(), "blindai", folder)?;
    }
    Ok(())
}
