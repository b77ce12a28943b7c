//! Replays of real journals, written by stock librbd with every kind of event, onto copies on another cluster. One pair
//! of clusters serves all tests of this program.

mod clones;
mod crashes;
mod events;
mod ownership;
mod speed;
mod world;

use std::sync::LazyLock;

use tokio::runtime::Runtime;

/// Runs a test on the threads of a runtime that outlives it: the clusters end with the thread that started them.
fn run(test: impl Future<Output = anyhow::Result<()>> + Send + 'static) {
    static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| Runtime::new().expect("a runtime"));
    RUNTIME.block_on(RUNTIME.spawn(test)).expect("a test that does not panic").expect("a test that succeeds");
}
