//! Runs the scenarios of a test binary that has `harness = false`: one after another, in one world that they share,
//! because starting clusters takes longer than most scenarios do.
//!
//! Arguments, report and exit code are those of cargo's own tests, but for three things: there is one filter at most,
//! scenarios never run side by side, whatever `--test-threads` says, and how long each took is told on standard error
//! behind the report.
//!
//! The world is started for the first scenario that is run, and ended behind the last one. A scenario that fails or
//! panics keeps none of these from happening, nor the others from being run.

use std::cell::Cell;
use std::panic::{self, AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Error, Result};
use futures::future::LocalBoxFuture;
use libtest_mimic::{Arguments, Conclusion, Failed, Trial};
use tokio::runtime::Runtime;

/// What the scenarios of a binary share.
pub trait World: Sized + Send + Sync + 'static {
    /// Starts it. When that fails, so does every scenario.
    fn start() -> impl Future<Output = Result<Self>>;

    /// Tidies up behind a scenario, however that ended. When this fails, so does the scenario.
    fn tidy(&self) -> impl Future<Output = Result<()>> {
        async { Ok(()) }
    }

    /// Does what is left to do before it is dropped. When this fails, so does the binary.
    fn end(&self) -> impl Future<Output = Result<()>> {
        async { Ok(()) }
    }
}

/// A scenario.
#[derive(Debug)]
pub struct Scenario<W> {
    /// What filters look at.
    pub name: &'static str,
    /// Plays it. The futures of scenarios are large, hence the box.
    pub play: fn(&W) -> LocalBoxFuture<'_, Result<()>>,
}

/// The `main` of a test binary: runs scenarios, given as `[module::function, …]`, in a [`World`].
#[macro_export]
macro_rules! run_scenarios {
    ($world:ty, [$($scenario:path),* $(,)?]) => {
        fn main() -> std::process::ExitCode {
            $crate::runner::main::<$world>(vec![$($crate::runner::Scenario {
                name: stringify!($scenario),
                play: |world| Box::pin($scenario(world)),
            }),*])
        }
    };
}

/// Runs those scenarios that the command line asks for.
pub fn main<W: World>(scenarios: Vec<Scenario<W>>) -> ExitCode {
    match run(Arguments::from_args(), scenarios) {
        Ok(conclusion) => conclusion.exit_code(),
        Err(error) => {
            eprintln!("The scenarios' world has not ended well: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run<W: World>(mut args: Arguments, scenarios: Vec<Scenario<W>>) -> Result<Conclusion> {
    args.test_threads = Some(1);
    keep_panics();
    let runtime = Runtime::new().context("cannot start a runtime")?;
    let stage = Arc::new(Stage { runtime, world: OnceLock::new(), times: Mutex::default() });
    let trials = scenarios.into_iter().map(|scenario| {
        let stage = stage.clone();
        Trial::test(scenario.name, move || stage.play(&scenario))
    });
    let conclusion = libtest_mimic::run(&args, trials.collect());
    Arc::into_inner(stage).context("a scenario still uses it")?.end()?;
    Ok(conclusion)
}

/// Where scenarios are played.
struct Stage<W> {
    /// Lives longer than the world, whose connections and daemons it serves.
    runtime: Runtime,
    /// There when a scenario has been run; or why it could not be started.
    world: OnceLock<Result<W, String>>,
    times: Mutex<Vec<(&'static str, Duration)>>,
}

impl<W: World> Stage<W> {
    fn play(&self, scenario: &Scenario<W>) -> Result<(), Failed> {
        let start = || {
            let started = caught(|| self.runtime.block_on(W::start()));
            started.map_err(|error| format!("the scenarios' world could not be started: {error:#}"))
        };
        let world = self.world.get_or_init(start).as_ref()?;
        let begun = Instant::now();
        let played = caught(|| self.runtime.block_on((scenario.play)(world)));
        let taken = (scenario.name, begun.elapsed());
        self.times.lock().unwrap_or_else(PoisonError::into_inner).push(taken);
        let tidied = caught(|| self.runtime.block_on(world.tidy())).context("cannot tidy up behind it");
        let errors = [played.err(), tidied.err()].into_iter().flatten();
        let told: Vec<String> = errors.map(|error| format!("Error: {error:#}")).collect();
        if told.is_empty() { Ok(()) } else { Err(told.join("\n").into()) }
    }

    fn end(self) -> Result<()> {
        for (name, time) in self.times.into_inner().unwrap_or_else(PoisonError::into_inner) {
            eprintln!("{:7.1} s  {name}", time.as_secs_f64());
        }
        let Some(Ok(world)) = self.world.into_inner() else { return Ok(()) };
        self.runtime.block_on(async move { world.end().await })
    }
}

thread_local! {
    /// What the last panic of this thread said, if they are kept.
    static PANIC: Cell<Option<String>> = const { Cell::new(None) };
}

/// From now on, panics of this thread are kept for [`caught`]: told at once, they would break a line of the report.
fn keep_panics() {
    let stage = thread::current().id();
    let elsewhere = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        if thread::current().id() == stage {
            PANIC.set(Some(info.to_string()));
        } else {
            elsewhere(info);
        }
    }));
}

/// Makes an error of a panic.
fn caught<T>(run: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|_| Err(Error::msg(PANIC.take().unwrap_or_default())))
}

#[cfg(test)]
mod tests {
    use anyhow::bail;

    use super::*;

    static STEPS: Mutex<Vec<&str>> = Mutex::new(Vec::new());

    async fn step(step: &'static str) -> Result<()> {
        STEPS.lock().unwrap().push(step);
        Ok(())
    }

    struct Witness;

    impl World for Witness {
        async fn start() -> Result<Self> {
            step("start").await.map(|()| Witness)
        }

        async fn tidy(&self) -> Result<()> {
            step("tidy").await
        }

        async fn end(&self) -> Result<()> {
            step("end").await
        }
    }

    impl Drop for Witness {
        fn drop(&mut self) {
            STEPS.lock().unwrap().push("drop");
        }
    }

    #[test]
    fn all_is_run_tidied_and_ended_whatever_fails() {
        let report = tempfile::NamedTempFile::new().unwrap();
        let run_with = |filter| {
            let scenarios = vec![
                Scenario { name: "panics", play: |_: &Witness| Box::pin(async { panic!("for a reason") }) },
                Scenario { name: "fails", play: |_| Box::pin(async { bail!("it has failed") }) },
                Scenario { name: "succeeds", play: |_| Box::pin(step("succeed")) },
            ];
            let args = ["tests", "--test-threads=4", filter, "--logfile", report.path().to_str().unwrap()];
            let conclusion = run(Arguments::from_iter(args), scenarios).unwrap();
            let steps = std::mem::take(&mut *STEPS.lock().unwrap());
            (conclusion.num_passed, conclusion.num_failed, conclusion.num_filtered_out, steps)
        };
        let steps = vec!["start", "tidy", "tidy", "succeed", "tidy", "end", "drop"];
        assert_eq!(run_with("s"), (1, 2, 0, steps));
        let told = std::fs::read_to_string(report.path()).unwrap();
        assert!(told.contains("Error: it has failed") && told.contains("runner.rs"), "{told}");
        assert!(told.contains("for a reason"), "{told}");
        assert_eq!(run_with("nothing"), (0, 0, 3, vec![]), "nothing is started for nothing");
    }
}
