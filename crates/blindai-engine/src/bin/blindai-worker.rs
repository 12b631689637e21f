//! A worker and nothing else: what `blindai` becomes when it is re-executed for a model.

fn main() -> std::process::ExitCode {
    blindai_engine::worker_main()
}
