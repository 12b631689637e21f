//! What `blindai --version` says: enough to find the source of a program, and to build it again.

use std::sync::LazyLock;

/// The version, the commit, and the engines.
pub static LONG: LazyLock<String> = LazyLock::new(|| {
    let version = env!("CARGO_PKG_VERSION");
    format!("{version}\ncommit   {COMMIT}\nengines  {ENGINES}")
});

/// Given by the build (`tools/reproduce.sh commit`). Nothing here asks git: the bytes must not depend
/// on whether a repository is around them.
const COMMIT: &str = match option_env!("BLINDAI_COMMIT") {
    Some(commit) => commit,
    None => "unknown",
};

const ENGINES: &str = match cfg!(feature = "tract") {
    true => "onnxruntime, tract",
    false => "onnxruntime",
};
