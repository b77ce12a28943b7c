//! The `rbd-mirror` binary: reads what was configured, builds the daemon, runs it, and ends it in order.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use daemon::admin_socket::AdminSocket;
use daemon::conf_file::Configuration;
use daemon::connect::Connector;
use daemon::control::Control;
use daemon::logging::{self, Log};
use daemon::options::{self, Request};
use daemon::process::{self, Identity, PidFile};
use daemon::supervisor;
use tikv_jemallocator::Jemalloc;
use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// The exit code of a daemon that failed, or was told twice to end.
const FAILURE: u8 = 1;
/// Threads that run tasks: the work is waiting for clusters, and copying is done in place.
const WORKER_THREADS_MAX: usize = 4;
/// How long connections may take to close at the end.
const CLOSE_TIMEOUT: Duration = Duration::from_millis(1500);
/// Where Ceph's daemons log to and answer, unless configured.
const LOG_FILE: &str = "/var/log/ceph/$cluster-$name.log";
const ADMIN_SOCKET: &str = "$run_dir/$cluster-$name.$pid.$cctid.asok";

/// Whose memory this is: Rust's and, since the functions of C's library are replaced by it, that of librados, in whose
/// threads data travels in buffers of up to the size of an object. glibc's allocator either gives each back to the
/// system, and the next one's pages have to be cleared anew, which took a third of the CPU time of a copy; or keeps them
/// for each thread alone, and the process grows to twice what it needs.
#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

fn main() -> ExitCode {
    let ceph_args = std::env::var("CEPH_ARGS").unwrap_or_default();
    let options = match options::parse(&ceph_args, std::env::args_os().skip(1)) {
        Ok(Request::Run(options)) => options,
        Ok(Request::Print(text)) => {
            print!("{text}");
            return ExitCode::SUCCESS;
        }
        Err(e) => {
            eprintln!("rbd-mirror: {e}");
            return ExitCode::FAILURE;
        }
    };
    let log_is_stderr = options.log_to_stderr;
    let code = match Configuration::load(options).and_then(|configuration| start(&configuration)) {
        Ok(()) => 0,
        Err(e) => {
            tracing::error!("{e:#}");
            // Said once where both would reach the same terminal.
            if !(log_is_stderr && tracing::dispatcher::has_been_set()) {
                eprintln!("rbd-mirror: {e:#}");
            }
            FAILURE
        }
    };
    // Connections have had their time to close. An ordinary exit would destroy what threads of librados still use.
    rados::end_process(code, Duration::ZERO)
}

/// Prepares the process, then runs the daemon in it.
fn start(configuration: &Configuration) -> anyhow::Result<()> {
    let user = configuration.get("setuser");
    let identity = Identity::resolve(user.as_deref(), configuration.get("setgroup").as_deref())?;
    let log = open_log(configuration, identity.as_ref())?;
    log.install(logging::level(configuration.get("debug_rbd_mirror").as_deref()));
    if !configuration.options().foreground {
        process::daemonize()?;
    }
    let pid_file = configuration.get("pid_file").filter(|path| !path.is_empty());
    let _pid_file = pid_file.map(|path| PidFile::write(Path::new(&path), identity.as_ref())).transpose()?;
    if let Some(identity) = identity {
        log.give_to(identity.uid, identity.gid)?;
        identity.assume()?;
    }
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(WORKER_THREADS_MAX);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .thread_name("rbd-mirror")
        .enable_all()
        .build()
        .context("cannot start threads")?;
    let outcome = run(&runtime, configuration, log);
    // A connection attempt that librados cannot give up must not keep the process.
    runtime.shutdown_timeout(Duration::from_millis(100));
    outcome
}

fn run(runtime: &Runtime, configuration: &Configuration, log: Log) -> anyhow::Result<()> {
    runtime.block_on(async {
        tracing::info!("{} (pid {})", options::version(), std::process::id());
        let control = Control::default();
        let cancel = CancellationToken::new();
        let signals = Signals::new()?;
        tokio::spawn(signals.handle(log, cancel.clone()));
        let socket = open_admin_socket(configuration)?;
        let answers = control.clone();
        let socket = socket.map(|socket| {
            tokio::spawn(socket.serve(move |command| {
                let answers = answers.clone();
                async move { answers.execute(&command).await }
            }))
        });
        let outcome = supervisor::run(Connector::new(configuration.clone()), control, cancel).await;
        if let Some(socket) = socket {
            socket.abort();
            // Aborted on purpose: that it was is no news.
            socket.await.ok();
        }
        if !rados::cluster::all_closed(CLOSE_TIMEOUT).await {
            tracing::debug!("some connections did not close in time");
        }
        tracing::info!("ended");
        outcome
    })
}

fn open_log(configuration: &Configuration, identity: Option<&Identity>) -> anyhow::Result<Log> {
    if configuration.options().log_to_stderr || configuration.is_true("log_to_stderr") {
        return Ok(Log::stderr());
    }
    if let Some(path) = configuration.get("log_file") {
        return if path.is_empty() { Ok(Log::stderr()) } else { Log::file(Path::new(&path), identity) };
    }
    let path = configuration.get_or("log_file", LOG_FILE);
    Ok(Log::file(Path::new(&path), identity).unwrap_or_else(|e| {
        eprintln!("rbd-mirror: {e:#}; logging to stderr");
        Log::stderr()
    }))
}

/// The admin socket; `None` when it is turned off, or when its default place cannot be used.
fn open_admin_socket(configuration: &Configuration) -> anyhow::Result<Option<AdminSocket>> {
    match configuration.get("admin_socket") {
        Some(path) if path.is_empty() => Ok(None),
        Some(path) => AdminSocket::bind(Path::new(&path)).map(Some),
        None => {
            let path = configuration.get_or("admin_socket", ADMIN_SOCKET);
            let bound = AdminSocket::bind(Path::new(&path));
            Ok(bound.inspect_err(|e| tracing::warn!("{e:#}; there will be no admin socket")).ok())
        }
    }
}

/// The signals that the daemon acts on.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    fn new() -> anyhow::Result<Self> {
        let on = |kind| signal(kind).context("cannot handle signals");
        Ok(Signals {
            terminate: on(SignalKind::terminate())?,
            interrupt: on(SignalKind::interrupt())?,
            hangup: on(SignalKind::hangup())?,
        })
    }

    /// The first SIGTERM or SIGINT ends the daemon in order, the second at once. SIGHUP reopens the log.
    async fn handle(mut self, log: Log, cancel: CancellationToken) {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => {}
                _ = self.interrupt.recv() => {}
                _ = self.hangup.recv() => {
                    if let Err(e) = log.reopen() {
                        eprintln!("rbd-mirror: {e:#}");
                    }
                    continue;
                }
            }
            if cancel.is_cancelled() {
                tracing::warn!("told twice to end: ending at once");
                rados::end_process(FAILURE, Duration::ZERO);
            }
            tracing::info!("told to end");
            cancel.cancel();
        }
    }
}
