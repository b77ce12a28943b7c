//! Declarations of librados functions that the crate `ceph` lacks or declares wrongly, and of our C++ shim.
//!
//! Everything else comes from `ceph::rados`. Wrong there and so avoided: `rados_nobjects_list_next`, which has one level
//! of pointers too many (`rados_nobjects_list_next2` stands in for it), and `rados_aio_create_completion`, whose second
//! callback is never called (`rados_aio_create_completion2`). Reference: `rados/librados.h`; `shim.cc` beside this file.

use std::ffi::{c_char, c_int, c_void};

use ceph::rados::{
    rados_completion_t, rados_ioctx_t, rados_list_ctx_t, rados_t, rados_watchcb2_t, rados_watcherrcb_t,
};

/// `rados_callback_t`: called once, on a thread of librados, when an operation is done.
pub type Callback = extern "C" fn(completion: rados_completion_t, arg: *mut c_void);

#[link(name = "rados", kind = "dylib")]
unsafe extern "C" {
    pub fn rados_aio_create_completion2(
        arg: *mut c_void,
        complete: Callback,
        completion: *mut rados_completion_t,
    ) -> c_int;
    pub fn rados_aio_get_version(completion: rados_completion_t) -> u64;

    pub fn rados_aio_watch2(
        io: rados_ioctx_t,
        object: *const c_char,
        completion: rados_completion_t,
        cookie: *mut u64,
        on_notify: rados_watchcb2_t,
        on_error: rados_watcherrcb_t,
        timeout_seconds: u32,
        arg: *mut c_void,
    ) -> c_int;
    pub fn rados_aio_unwatch(io: rados_ioctx_t, cookie: u64, completion: rados_completion_t) -> c_int;
    pub fn rados_aio_watch_flush(cluster: rados_t, completion: rados_completion_t) -> c_int;
    pub fn rados_aio_notify(
        io: rados_ioctx_t,
        object: *const c_char,
        completion: rados_completion_t,
        payload: *const c_char,
        payload_length: c_int,
        timeout_ms: u64,
        reply: *mut *mut c_char,
        reply_length: *mut usize,
    ) -> c_int;

    pub fn rados_aio_ioctx_selfmanaged_snap_create(
        io: rados_ioctx_t,
        snap: *mut u64,
        completion: rados_completion_t,
    ) -> c_int;
    pub fn rados_aio_ioctx_selfmanaged_snap_remove(
        io: rados_ioctx_t,
        snap: u64,
        completion: rados_completion_t,
    ) -> c_int;

    pub fn rados_nobjects_list_next2(
        list: rados_list_ctx_t,
        entry: *mut *const c_char,
        key: *mut *const c_char,
        namespace: *mut *const c_char,
        entry_length: *mut usize,
        key_length: *mut usize,
        namespace_length: *mut usize,
    ) -> c_int;

    pub fn rados_set_pool_full_try(io: rados_ioctx_t);
    pub fn rados_getaddrs(cluster: rados_t, addresses: *mut *mut c_char) -> c_int;
    pub fn rados_mgr_command(
        cluster: rados_t,
        commands: *mut *const c_char,
        command_count: usize,
        input: *const c_char,
        input_length: usize,
        output: *mut *mut c_char,
        output_length: *mut usize,
        status: *mut *mut c_char,
        status_length: *mut usize,
    ) -> c_int;
    pub fn rados_service_register(
        cluster: rados_t,
        service: *const c_char,
        daemon: *const c_char,
        metadata: *const c_char,
    ) -> c_int;
    pub fn rados_service_update_status(cluster: rados_t, status: *const c_char) -> c_int;
}

/// A read operation of the shim.
#[repr(C)]
pub struct RsRead {
    _opaque: [u8; 0],
}

/// A write operation of the shim.
#[repr(C)]
pub struct RsWrite {
    _opaque: [u8; 0],
}

/// Data that the shim handed out.
#[repr(C)]
pub struct RsBuffer {
    _opaque: [u8; 0],
}

/// `librados::AioCompletion`.
#[repr(C)]
pub struct RsCompletion {
    _opaque: [u8; 0],
}

/// Borrowed bytes.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Slice {
    pub data: *const c_char,
    pub length: usize,
}

impl Slice {
    /// The bytes of `bytes`, which must outlive the use of the slice.
    pub fn of(bytes: &[u8]) -> Slice {
        Slice { data: bytes.as_ptr().cast(), length: bytes.len() }
    }
}

/// A range of bytes.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct RsExtent {
    pub offset: u64,
    pub length: u64,
}

/// Called by [`rs_read_visit_omap`] per entry.
pub type VisitOmap = extern "C" fn(arg: *mut c_void, key: Slice, value: Slice);

/// Called by [`rs_read_visit_clones`] per clone.
pub type VisitClone = extern "C" fn(
    arg: *mut c_void,
    id: u64,
    size: u64,
    snaps: *const u64,
    snap_count: usize,
    overlap: *const RsExtent,
    overlap_count: usize,
);

/// Called by [`rs_read_visit_watchers`] per watcher.
pub type VisitWatcher =
    extern "C" fn(arg: *mut c_void, address: Slice, client: i64, cookie: u64, timeout_seconds: u32);

unsafe extern "C" {
    pub fn rs_read_new(subs: usize) -> *mut RsRead;
    pub fn rs_read_free(read: *mut RsRead);
    pub fn rs_read_read(read: *mut RsRead, offset: u64, length: u64);
    pub fn rs_read_sparse(read: *mut RsRead, offset: u64, length: u64);
    pub fn rs_read_stat(read: *mut RsRead);
    pub fn rs_read_checksum(
        read: *mut RsRead,
        kind: c_int,
        seed: Slice,
        offset: u64,
        length: u64,
        chunk: u32,
    );
    pub fn rs_read_list_snaps(read: *mut RsRead);
    pub fn rs_read_list_watchers(read: *mut RsRead);
    pub fn rs_read_getxattr(read: *mut RsRead, name: Slice);
    pub fn rs_read_omap(read: *mut RsRead, after: Slice, prefix: Slice, max: u64);
    pub fn rs_read_omap_by_keys(read: *mut RsRead, keys: *const Slice, count: usize);
    pub fn rs_read_exec(read: *mut RsRead, class: Slice, method: Slice, input: Slice);
    pub fn rs_read_assert_exists(read: *mut RsRead);
    pub fn rs_read_assert_version(read: *mut RsRead, version: u64);
    pub fn rs_read_submit(
        read: *mut RsRead,
        io: rados_ioctx_t,
        object: Slice,
        snap: u64,
        callback: Callback,
        arg: *mut c_void,
        completion: *mut *mut RsCompletion,
    ) -> c_int;

    pub fn rs_read_rval(read: *const RsRead, index: usize) -> c_int;
    pub fn rs_read_take(
        read: *mut RsRead,
        index: usize,
        data: *mut *const c_char,
        length: *mut usize,
    ) -> *mut RsBuffer;
    pub fn rs_buffer_free(buffer: *mut RsBuffer);
    pub fn rs_read_get_stat(read: *const RsRead, index: usize, size: *mut u64, mtime_seconds: *mut i64);
    pub fn rs_read_extents(read: *const RsRead, index: usize, out: *mut RsExtent, max: usize) -> usize;
    pub fn rs_read_visit_omap(read: *mut RsRead, index: usize, visit: VisitOmap, arg: *mut c_void) -> c_int;
    pub fn rs_read_visit_watchers(read: *const RsRead, index: usize, visit: VisitWatcher, arg: *mut c_void);
    pub fn rs_read_visit_clones(
        read: *const RsRead,
        index: usize,
        visit: VisitClone,
        arg: *mut c_void,
    ) -> u64;

    pub fn rs_write_new() -> *mut RsWrite;
    pub fn rs_write_free(write: *mut RsWrite);
    pub fn rs_write_returned(write: *const RsWrite) -> c_int;
    pub fn rs_write_create(write: *mut RsWrite, exclusive: c_int);
    pub fn rs_write_write(write: *mut RsWrite, offset: u64, data: Slice);
    pub fn rs_write_write_full(write: *mut RsWrite, data: Slice);
    pub fn rs_write_append(write: *mut RsWrite, data: Slice);
    pub fn rs_write_zero(write: *mut RsWrite, offset: u64, length: u64);
    pub fn rs_write_truncate(write: *mut RsWrite, size: u64);
    pub fn rs_write_remove(write: *mut RsWrite);
    pub fn rs_write_rollback(write: *mut RsWrite, snap: u64);
    pub fn rs_write_alloc_hint(write: *mut RsWrite, object_size: u64, write_size: u64);
    pub fn rs_write_setxattr(write: *mut RsWrite, name: Slice, value: Slice);
    pub fn rs_write_rmxattr(write: *mut RsWrite, name: Slice);
    pub fn rs_write_cmpxattr(write: *mut RsWrite, name: Slice, value: Slice);
    pub fn rs_write_omap_set(write: *mut RsWrite, keys: *const Slice, values: *const Slice, count: usize);
    pub fn rs_write_omap_remove(write: *mut RsWrite, keys: *const Slice, count: usize);
    pub fn rs_write_omap_clear(write: *mut RsWrite);
    pub fn rs_write_exec(write: *mut RsWrite, class: Slice, method: Slice, input: Slice);
    pub fn rs_write_assert_exists(write: *mut RsWrite);
    pub fn rs_write_assert_version(write: *mut RsWrite, version: u64);
    pub fn rs_write_submit(
        write: *mut RsWrite,
        io: rados_ioctx_t,
        object: Slice,
        snap_seq: u64,
        snaps: *const u64,
        snap_count: usize,
        force: c_int,
        callback: Callback,
        arg: *mut c_void,
        completion: *mut *mut RsCompletion,
    ) -> c_int;

    pub fn rs_completion_cancel(io: rados_ioctx_t, completion: *mut RsCompletion);
    pub fn rs_completion_release(completion: *mut RsCompletion);
}
