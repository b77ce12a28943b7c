//! A connection of librados: configuration, I/O contexts, bounds on what is in flight, shutdown.
//!
//! What is set before the caller's own options, and why:
//! * `admin_socket` is emptied: librados would open one per handle, at the path that belongs to the daemon.
//! * `objecter_inflight_ops` and `objecter_inflight_op_bytes` are 0, no throttle: a full one blocks the thread that
//!   submits, which here is an async worker. [`Bounds`] stands in front of it and makes the *task* wait instead.
//! * Every I/O context has the flag FULL_TRY: librados would hold back all that changes anything in a pool that is full, also
//!   what frees space or needs none, and say nothing. With the flag the OSD decides, and refuses what needs room (EDQUOT when
//!   the pool has reached its quota, ENOSPC when OSDs are full).
//!
//! Invariants:
//! * A [`Permit`] is held until the operation is completed, also when nobody waits for it any more, or until it was waited for
//!   in vain for [`STALLED_AFTER`]. Requests that move data and all others have bounds of their own.
//! * `rados_shutdown` waits for threads of librados, and may be provoked from one of them (the last reference to a
//!   connection can be that of a completion): it runs on a thread of its own.
//! * An [`Io`] goes before its connection: `rados_ioctx_destroy` before `rados_shutdown`.

use std::collections::HashMap;
use std::ffi::{CStr, CString, c_char};
use std::path::Path;
use std::ptr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ceph::rados as c;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::blocking;
use super::closing::Open;
use super::ffi;
use crate::backend::Location;
use crate::cluster::{ConnectOptions, Limits};
use crate::error::{Error, Result};

/// Blocking calls that one connection runs at once; more wait their turn.
const BLOCKING_CALLS_MAX: usize = 16;

/// Bytes that one permit of the byte bound stands for.
const BYTES_PER_PERMIT: u64 = 1024;

/// An operation that is not answered for so long gives its permit back.
const STALLED_AFTER: Duration = Duration::from_secs(10);

/// What is set before the caller's options (see the head of this file).
const PRESET: [(&str, &str); 3] =
    [("admin_socket", ""), ("objecter_inflight_ops", "0"), ("objecter_inflight_op_bytes", "0")];

/// A connected cluster handle.
pub(super) struct Connection {
    cluster: Handle,
    /// Taken when it is dropped.
    open: Option<Open>,
    contexts: Mutex<HashMap<Location, Arc<RawIo>>>,
    /// What the options of [`PRESET`] were before they were set, for [`Connection::config`].
    configured: HashMap<String, String>,
    /// Of operations that move data.
    bulk_bounds: Bounds,
    /// Of all others.
    bounds: Bounds,
    /// Bounds the threads of `blocking`.
    pub(super) blocking_calls: Arc<Semaphore>,
    pub(super) fsid: String,
    pub(super) instance_id: u64,
    pub(super) address: String,
}

/// A `rados_t`.
#[derive(Clone, Copy)]
pub(super) struct Handle(pub(super) c::rados_t);

// SAFETY: librados synchronizes access to a cluster handle by itself; it may be used from any thread.
unsafe impl Send for Handle {}
// SAFETY: as above.
unsafe impl Sync for Handle {}

impl Handle {
    /// Ends the handle and frees it; waits for threads of librados. To be called once, by the last user.
    fn shut_down(self) {
        // SAFETY: nobody uses the handle any more: whatever is in flight holds a reference to its connection.
        unsafe { c::rados_shutdown(self.0) };
    }
}

impl Connection {
    /// Connects; waits for the monitors.
    pub(super) fn open(options: &ConnectOptions) -> Result<Connection> {
        let cluster_name = default_to(&options.cluster_name, "ceph");
        let client_name = default_to(&options.client_name, "client.admin");
        let what = format!("cannot connect to cluster '{cluster_name}' as {client_name}");
        let mut cluster = ptr::null_mut();
        let (cluster_c, client_c) = (c_string(cluster_name)?, c_string(client_name)?);
        // SAFETY: both strings live across the call, `cluster` is a valid place for the handle.
        let created = unsafe { c::rados_create2(&mut cluster, cluster_c.as_ptr(), client_c.as_ptr(), 0) };
        check(created, || what.clone())?;
        let open = Open::new();
        let unconnected = Unconnected(Handle(cluster));
        let handle = unconnected.0;
        let configured = configure(handle, options)?;
        // SAFETY: the handle is live and configured.
        let connected = unsafe { c::rados_connect(handle.0) };
        check(connected, || format!("{what}{}", connect_hint(-connected)))?;
        // SAFETY: the handle is connected.
        let instance_id = unsafe { c::rados_get_instance_id(handle.0) };
        let (fsid, address) = (fsid(handle)?, address(handle)?);
        std::mem::forget(unconnected);
        Ok(Connection {
            cluster: handle,
            open: Some(open),
            contexts: Mutex::default(),
            configured,
            bulk_bounds: Bounds::new(options.limits),
            bounds: Bounds::new(options.limits),
            blocking_calls: Arc::new(Semaphore::new(BLOCKING_CALLS_MAX)),
            fsid,
            instance_id,
            address,
        })
    }

    /// The cluster handle, live as long as this connection.
    pub(super) fn handle(&self) -> Handle {
        self.cluster
    }

    /// Waits for room within the bounds.
    pub(super) async fn permit(&self, bulk: bool, bytes: u64) -> Permit {
        let bounds = if bulk { &self.bulk_bounds } else { &self.bounds };
        bounds.permit(bytes).await
    }

    /// The value of a configuration option.
    pub(super) fn config(&self, option: &str) -> Option<String> {
        match self.configured.get(option) {
            Some(value) => Some(value.clone()),
            None => conf_get(self.cluster, option),
        }
    }

    /// The I/O context of a location; ENOENT when there is no such pool.
    ///
    /// The first use of a location may wait for a new OSD map, on a thread of its own. Contexts are kept: there are few
    /// locations, and a pool's number is never used again.
    pub(super) async fn io(self: &Arc<Self>, location: &Location) -> Result<Io> {
        let known = self.contexts().get(location).cloned();
        let raw = match known {
            Some(raw) => raw,
            None => {
                let (connection, location) = (self.clone(), location.clone());
                blocking::on_thread_of(self, move || connection.open_io(location)).await?
            }
        };
        Ok(Io { raw, connection: self.clone() })
    }

    fn open_io(&self, location: Location) -> Result<Arc<RawIo>> {
        let namespace = c_string(&location.namespace)?;
        let mut io = ptr::null_mut();
        // SAFETY: the handle is connected, `io` is a valid place for the context.
        let created = unsafe { c::rados_ioctx_create2(self.cluster.0, location.pool.0, &mut io) };
        check(created, || format!("cannot open pool {}", location.pool))?;
        // SAFETY: `io` was just made and is not shared yet.
        unsafe {
            c::rados_ioctx_set_namespace(io, namespace.as_ptr());
            ffi::rados_set_pool_full_try(io);
        }
        let raw = Arc::new(RawIo(io));
        Ok(self.contexts().entry(location).or_insert(raw).clone())
    }

    fn contexts(&self) -> MutexGuard<'_, HashMap<Location, Arc<RawIo>>> {
        self.contexts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.contexts().clear();
        let cluster = self.cluster;
        let mut open = self.open.take();
        open.iter_mut().for_each(Open::start_closing);
        let shutdown = move || {
            cluster.shut_down();
            drop(open);
        };
        // Without a thread the handle leaks, which is harmless, while waiting here might never end.
        if let Err(error) = std::thread::Builder::new().name("rados-shutdown".into()).spawn(shutdown) {
            tracing::warn!("cannot start a thread to close the connection to cluster {}: {error}", self.fsid);
        }
    }
}

/// A handle that is shut down unless it gets connected.
struct Unconnected(Handle);

impl Drop for Unconnected {
    fn drop(&mut self) {
        self.0.shut_down();
    }
}

/// A `rados_ioctx_t`.
struct RawIo(c::rados_ioctx_t);

// SAFETY: an I/O context may be used from any thread at once as long as its state (namespace, locator, snapshots) is not
// changed; it is set only before the context is shared.
unsafe impl Send for RawIo {}
// SAFETY: as above.
unsafe impl Sync for RawIo {}

impl Drop for RawIo {
    fn drop(&mut self) {
        // SAFETY: the last user is gone.
        unsafe { c::rados_ioctx_destroy(self.0) };
    }
}

/// An I/O context and the connection that it lives on. Fields in the order in which they must go.
#[derive(Clone)]
pub(super) struct Io {
    raw: Arc<RawIo>,
    connection: Arc<Connection>,
}

impl Io {
    /// The context, live as long as this value.
    pub(super) fn raw(&self) -> c::rados_ioctx_t {
        self.raw.0
    }

    /// The connection.
    pub(super) fn connection(&self) -> &Arc<Connection> {
        &self.connection
    }
}

/// Bounds on operations and bytes in flight.
struct Bounds {
    operations: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
    byte_permits: u32,
}

/// Room for one operation: of operations and of bytes. Given back when all clones are dropped, or one is told to.
#[derive(Clone)]
pub(super) struct Permit(Arc<Mutex<Option<[OwnedSemaphorePermit; 2]>>>);

impl Permit {
    /// Awaits the answer to an operation, and gives the permit back when that takes too long.
    pub(super) async fn while_waiting<T>(self, answer: impl Future<Output = T>) -> T {
        tokio::pin!(answer);
        tokio::select! {
            biased;
            answer = &mut answer => return answer,
            () = tokio::time::sleep(STALLED_AFTER) => {}
        }
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        answer.await
    }
}

impl Bounds {
    fn new(limits: Limits) -> Bounds {
        let byte_permits =
            u32::try_from((limits.bytes as u64).div_ceil(BYTES_PER_PERMIT)).unwrap_or(u32::MAX).max(1);
        Bounds {
            operations: Arc::new(Semaphore::new(limits.operations.clamp(1, Semaphore::MAX_PERMITS))),
            bytes: Arc::new(Semaphore::new(byte_permits as usize)),
            byte_permits,
        }
    }

    /// Waits for room, in the order of arrival. An operation larger than the bound has it for itself.
    async fn permit(&self, bytes: u64) -> Permit {
        let wanted =
            u32::try_from(bytes.div_ceil(BYTES_PER_PERMIT)).unwrap_or(u32::MAX).min(self.byte_permits);
        let operation = self.operations.clone().acquire_owned().await;
        let bytes = self.bytes.clone().acquire_many_owned(wanted).await;
        match (operation, bytes) {
            (Ok(operation), Ok(bytes)) => Permit(Arc::new(Mutex::new(Some([operation, bytes])))),
            _ => unreachable!("the semaphores of a connection are never closed"),
        }
    }
}

/// Applies configuration file, environment, [`PRESET`] and the caller's options, in this order. Answers with what the
/// preset options would have been.
fn configure(cluster: Handle, options: &ConnectOptions) -> Result<HashMap<String, String>> {
    if !options.no_conf_file {
        read_conf_file(cluster, options.conf_file.as_deref())?;
    }
    // SAFETY: the handle is live; a null name means CEPH_ARGS.
    check(unsafe { c::rados_conf_parse_env(cluster.0, ptr::null()) }, || {
        "cannot use the options in the environment variable CEPH_ARGS".into()
    })?;
    let mut configured = HashMap::new();
    for (option, value) in PRESET {
        if !options.options.contains_key(option) {
            configured.extend(conf_get(cluster, option).map(|before| (option.to_string(), before)));
            conf_set(cluster, option, value)?;
        }
    }
    for (option, value) in &options.options {
        conf_set(cluster, option, value)?;
    }
    Ok(configured)
}

fn read_conf_file(cluster: Handle, path: Option<&Path>) -> Result<()> {
    let Some(path) = path else {
        // SAFETY: the handle is live; a null path means the default places.
        let read = unsafe { c::rados_conf_read_file(cluster.0, ptr::null()) };
        if read == -libc::ENOENT {
            tracing::debug!("no Ceph configuration file in the default places: defaults apply");
            return Ok(());
        }
        return check(read, || "cannot read the Ceph configuration file in the default places".into());
    };
    let path_c = c_string(&path.to_string_lossy())?;
    // SAFETY: the handle is live, the path lives across the call.
    let read = unsafe { c::rados_conf_read_file(cluster.0, path_c.as_ptr()) };
    check(read, || format!("cannot read the Ceph configuration file '{}'", path.display()))
}

fn conf_set(cluster: Handle, option: &str, value: &str) -> Result<()> {
    let (option_c, value_c) = (c_string(option)?, c_string(value)?);
    // SAFETY: the handle is live, both strings live across the call.
    let set = unsafe { c::rados_conf_set(cluster.0, option_c.as_ptr(), value_c.as_ptr()) };
    if set == -libc::ENOENT {
        let what = format!(
            "cannot set the Ceph option '{option}': Ceph has no option of that name ('ceph config ls' lists them)"
        );
        return Err(Error::new(libc::EINVAL, what));
    }
    // The value may be a key: it does not belong into a message.
    check(set, || format!("cannot set the Ceph option '{option}': Ceph does not take its value"))
}

/// The value of an option; `None` when there is no such option.
pub(super) fn conf_get(cluster: Handle, option: &str) -> Option<String> {
    let option = CString::new(option).ok()?;
    let mut buffer = vec![0u8; 1024];
    loop {
        // SAFETY: the handle is live, the buffer is as long as is said.
        let got = unsafe {
            c::rados_conf_get(cluster.0, option.as_ptr(), buffer.as_mut_ptr().cast(), buffer.len())
        };
        if got == -libc::ENAMETOOLONG && buffer.len() < 1 << 20 {
            buffer.resize(buffer.len() * 4, 0);
        } else if got < 0 {
            return None;
        } else {
            return Some(CStr::from_bytes_until_nul(&buffer).ok()?.to_string_lossy().into_owned());
        }
    }
}

fn fsid(cluster: Handle) -> Result<String> {
    let mut buffer = [0u8; 64];
    // SAFETY: the handle is connected, the buffer is as long as is said.
    let got = unsafe { c::rados_cluster_fsid(cluster.0, buffer.as_mut_ptr().cast(), buffer.len()) };
    check(got, || "cannot learn the fsid of the cluster".into())?;
    Ok(CStr::from_bytes_until_nul(&buffer).unwrap_or_default().to_string_lossy().into_owned())
}

/// This client's address without its protocol, as blocklists take and print it.
fn address(cluster: Handle) -> Result<String> {
    let mut text: *mut c_char = ptr::null_mut();
    // SAFETY: the handle is connected, `text` is a valid place for the answer.
    check(unsafe { ffi::rados_getaddrs(cluster.0, &mut text) }, || {
        "cannot learn this client's address".into()
    })?;
    // SAFETY: on success `text` is a string that was allocated with malloc and is ours.
    let address = unsafe {
        let address = CStr::from_ptr(text).to_string_lossy().into_owned();
        libc::free(text.cast());
        address
    };
    Ok(bare_address(&address).to_string())
}

/// The first address of a vector (`[v2:1.2.3.4:0/5,v1:1.2.3.4:0/5]`) or a single one, without its protocol.
fn bare_address(address: &str) -> &str {
    // What ends with a bracket is a vector: the bracket of an IPv6 address is followed by the port.
    let vector = address.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    let first = vector.unwrap_or(address).split(',').next().unwrap_or_default();
    ["v1:", "v2:", "any:"].iter().find_map(|protocol| first.strip_prefix(protocol)).unwrap_or(first)
}

/// What most likely is wrong when connecting fails.
fn connect_hint(errno: i32) -> String {
    const FOREIGN_KEY: &str = "a type that this librados does not know: keys made by Ceph 20.2 need its librados, unless \
                               they are made with the key type 'aes'";
    match errno {
        libc::ENOENT => " (no monitor address, or no keyring with a key for this client, was found)".into(),
        libc::EACCES | libc::EPERM => " (the monitors refused the client's key)".into(),
        libc::ETIMEDOUT => " (no monitor answered)".into(),
        libc::EINVAL => {
            format!(" (an option or the key has no valid form, or the key is of {FOREIGN_KEY})")
        }
        libc::EIO => format!(" (the keyring cannot be read, or its key is of {FOREIGN_KEY})"),
        _ => String::new(),
    }
}

fn default_to<'a>(value: &'a str, default: &'a str) -> &'a str {
    if value.is_empty() { default } else { value }
}

/// A string for C; EINVAL when it holds a zero byte.
pub(super) fn c_string(text: &str) -> Result<CString> {
    CString::new(text)
        .map_err(|_| Error::new(libc::EINVAL, format!("cannot pass on {text:?}, which has a zero byte")))
}

/// An error from a negative return value.
pub(super) fn check(rval: i32, what: impl FnOnce() -> String) -> Result<()> {
    if rval < 0 { Err(Error::new(rval, what())) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_lose_their_protocol() {
        assert_eq!(bare_address("127.0.0.1:0/12"), "127.0.0.1:0/12");
        assert_eq!(bare_address("v1:127.0.0.1:0/12"), "127.0.0.1:0/12");
        assert_eq!(bare_address("[v2:127.0.0.1:0/12,v1:127.0.0.1:0/12]"), "127.0.0.1:0/12");
        assert_eq!(bare_address("v1:[::1]:0/12"), "[::1]:0/12");
        assert_eq!(bare_address("[::1]:0/12"), "[::1]:0/12");
    }

    #[tokio::test]
    async fn what_is_in_flight_is_bounded_by_number_and_by_bytes() {
        let bounds = Bounds::new(Limits { operations: 3, bytes: 1 << 20 });
        let now = |bytes| futures::FutureExt::now_or_never(bounds.permit(bytes));
        let held: Vec<_> = (0..3).map(|_| now(0).unwrap()).collect();
        assert!(now(0).is_none(), "a fourth operation");
        drop(held);

        let half = now(512 << 10).unwrap();
        let other_half = now(512 << 10).unwrap();
        assert!(now(1).is_none(), "a byte too many");
        assert!(now(0).is_some(), "no bytes at all");
        drop(half);
        // Larger than the bound: it waits until it is alone, and then passes.
        assert!(now(4 << 20).is_none());
        drop(other_half);
        assert!(now(4 << 20).is_some());
    }
}
