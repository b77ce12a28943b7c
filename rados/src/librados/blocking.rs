//! What librados offers only as a call that waits, each on a thread of its own.
//!
//! Such a call lasts as long as its cluster is out of reach, possibly forever, and cannot be given up. A thread of the
//! runtime's blocking pool would then keep the runtime from ending; a thread of our own ends with the process. Starting
//! one costs some ten microseconds, the calls cost a round trip to a monitor. Their number is bounded per connection.

use std::ffi::{CString, c_char};
use std::ptr;
use std::slice;
use std::sync::Arc;

use bytes::Bytes;
use ceph::rados as c;
use tokio::sync::oneshot;

use super::connection::{Connection, c_string, check};
use super::ffi;
use crate::backend::Location;
use crate::cluster::{CommandReply, CommandTarget};
use crate::error::{Error, Result};
use crate::types::PoolId;

/// Runs `f` on a new thread. When the future is dropped, `f` still runs to its end.
pub(super) async fn on_own_thread<T: Send + 'static>(
    f: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let (sender, receiver) = oneshot::channel();
    let run = move || {
        // Nobody may be waiting any more; then the result is dropped here, off the async threads.
        let _ = sender.send(f());
    };
    std::thread::Builder::new()
        .name("rados-blocking".into())
        .spawn(run)
        .map_err(|e| Error::new(e.raw_os_error().unwrap_or(libc::EAGAIN), "cannot start a thread"))?;
    match receiver.await {
        Ok(result) => result,
        Err(_) => Err(Error::new(libc::EIO, "cannot finish a call of librados: its thread panicked")),
    }
}

/// As [`on_own_thread`], within the connection's bound of such calls.
pub(super) async fn on_thread_of<T: Send + 'static>(
    connection: &Connection,
    f: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let permit = connection.blocking_calls.clone().acquire_owned().await;
    on_own_thread(move || {
        let result = f();
        drop(permit);
        result
    })
    .await
}

/// Names of all objects in a location, in no particular order.
pub(super) async fn list_objects(connection: Arc<Connection>, location: Location) -> Result<Vec<String>> {
    let what = format!("cannot list the objects in pool {}", location.pool);
    let io = connection.io(&location).await?;
    on_thread_of(&connection, move || {
        let mut list = ptr::null_mut();
        // SAFETY: the context is live, `list` is a valid place for the handle.
        let opened = unsafe { c::rados_nobjects_list_open(io.raw(), &mut list) };
        check(opened, || what.clone())?;
        let result = list_all(list).map_err(|errno| Error::new(errno, what));
        // SAFETY: the listing was opened above and is closed once.
        unsafe { c::rados_nobjects_list_close(list) };
        result
    })
    .await
}

fn list_all(list: c::rados_list_ctx_t) -> std::result::Result<Vec<String>, i32> {
    let mut names = Vec::new();
    loop {
        let (mut entry, mut length) = (ptr::null(), 0);
        // SAFETY: the listing is open; what is not asked for may be null, except the three names.
        let next = unsafe {
            let (mut key, mut namespace) = (ptr::null(), ptr::null());
            let (mut key_length, mut namespace_length) = (0, 0);
            ffi::rados_nobjects_list_next2(
                list,
                &mut entry,
                &mut key,
                &mut namespace,
                &mut length,
                &mut key_length,
                &mut namespace_length,
            )
        };
        match next {
            0 => {
                // SAFETY: on success `entry` is a name of `length` bytes, valid until the next call.
                let name = unsafe { slice::from_raw_parts(entry.cast::<u8>(), length) };
                names.push(String::from_utf8_lossy(name).into_owned());
            }
            end if end == -libc::ENOENT => return Ok(names),
            error => return Err(error),
        }
    }
}

/// Runs a monitor or manager command.
pub(super) async fn command(
    connection: Arc<Connection>,
    target: CommandTarget,
    command: String,
    input: Bytes,
) -> Result<CommandReply> {
    let handle_of = connection.clone();
    on_thread_of(&connection, move || {
        let command_c = c_string(&command)?;
        let mut commands = [command_c.as_ptr()];
        let (mut output, mut output_length) = (ptr::null_mut(), 0);
        let (mut status, mut status_length) = (ptr::null_mut(), 0);
        let run = match target {
            CommandTarget::Mon => c::rados_mon_command,
            CommandTarget::Mgr => ffi::rados_mgr_command,
        };
        // SAFETY: the handle is connected; command and input live across the call, and the rest are valid places for
        // the answer.
        let rval = unsafe {
            run(
                handle_of.handle().0,
                commands.as_mut_ptr(),
                commands.len(),
                input.as_ptr().cast(),
                input.len(),
                &mut output,
                &mut output_length,
                &mut status,
                &mut status_length,
            )
        };
        let reply = CommandReply {
            output: take_buffer(output, output_length),
            status: String::from_utf8_lossy(&take_buffer(status, status_length)).into_owned(),
        };
        check(rval, || describe_command(&command, &reply.status))?;
        Ok(reply)
    })
    .await
}

/// Sentence for a failed command. Arguments stay out of it: they may be secrets.
fn describe_command(command: &str, status: &str) -> String {
    let parsed: Option<serde_json::Value> = serde_json::from_str(command).ok();
    let prefix = parsed.as_ref().and_then(|value| value["prefix"].as_str()).unwrap_or("?");
    let status = status.trim();
    if status.is_empty() {
        format!("cannot run the command '{prefix}'")
    } else {
        format!("cannot run the command '{prefix}' ({status})")
    }
}

/// Copies and frees what librados allocated.
fn take_buffer(data: *mut c_char, length: usize) -> Bytes {
    if data.is_null() {
        return Bytes::new();
    }
    // SAFETY: librados says that `length` bytes were allocated at `data`; they are ours to free, once.
    unsafe {
        let bytes = Bytes::copy_from_slice(slice::from_raw_parts(data.cast::<u8>(), length));
        c::rados_buffer_free(data);
        bytes
    }
}

/// Number and name of every pool.
pub(super) async fn pools(connection: Arc<Connection>) -> Result<Vec<(PoolId, String)>> {
    let handle_of = connection.clone();
    on_thread_of(&connection, move || {
        let cluster = handle_of.handle().0;
        let mut buffer: Vec<u8> = vec![0; 4096];
        loop {
            // SAFETY: the handle is connected, the buffer is as long as is said.
            let needed = unsafe { c::rados_pool_list(cluster, buffer.as_mut_ptr().cast(), buffer.len()) };
            check(needed, || "cannot list the pools".into())?;
            if needed as usize <= buffer.len() {
                break;
            }
            buffer = vec![0; needed as usize * 2];
        }
        let names = buffer.split(|byte| *byte == 0).take_while(|name| !name.is_empty());
        let mut pools = Vec::new();
        for name in names {
            let name_c = CString::new(name).unwrap_or_default();
            // SAFETY: the handle is connected, the name lives across the call.
            let id = unsafe { c::rados_pool_lookup(cluster, name_c.as_ptr()) };
            // A pool that was removed since has no number any more.
            if id >= 0 {
                pools.push((PoolId(id), String::from_utf8_lossy(name).into_owned()));
            }
        }
        Ok(pools)
    })
    .await
}

/// Waits until the client has the newest OSD map.
pub(super) async fn wait_for_latest_osdmap(connection: Arc<Connection>) -> Result<()> {
    let handle_of = connection.clone();
    on_thread_of(&connection, move || {
        // SAFETY: the handle is connected.
        let waited = unsafe { c::rados_wait_for_latest_osdmap(handle_of.handle().0) };
        check(waited, || "cannot get the newest OSD map".into())
    })
    .await
}

/// Registers the connection as a service daemon.
pub(super) async fn service_register(
    connection: Arc<Connection>,
    service: String,
    daemon: String,
    metadata: Vec<(String, String)>,
) -> Result<()> {
    let handle_of = connection.clone();
    on_thread_of(&connection, move || {
        let (service_c, daemon_c) = (c_string(&service)?, c_string(&daemon)?);
        let metadata = dictionary(&metadata)?;
        // SAFETY: the handle is connected; the strings and the dictionary, which ends with two zero bytes, live across
        // the call.
        let registered = unsafe {
            ffi::rados_service_register(
                handle_of.handle().0,
                service_c.as_ptr(),
                daemon_c.as_ptr(),
                metadata.as_ptr().cast(),
            )
        };
        check(registered, || {
            format!("cannot register with the manager as service daemon '{service}.{daemon}'")
        })
    })
    .await
}

/// Publishes the status of the service daemon.
pub(super) async fn service_update_status(
    connection: Arc<Connection>,
    status: Vec<(String, String)>,
) -> Result<()> {
    let handle_of = connection.clone();
    on_thread_of(&connection, move || {
        let status = dictionary(&status)?;
        // SAFETY: the handle is connected; the dictionary, which ends with two zero bytes, lives across the call.
        let updated =
            unsafe { ffi::rados_service_update_status(handle_of.handle().0, status.as_ptr().cast()) };
        check(updated, || "cannot publish the status of the service daemon".into())
    })
    .await
}

/// Keys and values, each ended by a zero byte, and an empty key at the end.
fn dictionary(entries: &[(String, String)]) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    for (key, value) in entries {
        if key.is_empty() {
            return Err(Error::new(
                libc::EINVAL,
                "cannot publish an entry of a service daemon that has no name",
            ));
        }
        bytes.extend_from_slice(c_string(key)?.as_bytes_with_nul());
        bytes.extend_from_slice(c_string(value)?.as_bytes_with_nul());
    }
    bytes.extend_from_slice(&[0, 0]);
    Ok(bytes)
}
