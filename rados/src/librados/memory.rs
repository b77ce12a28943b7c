//! Memory of the process: large buffers go back to the system as soon as they are freed.
//!
//! Data travels in buffers of up to the size of an object, which librados allocates in its threads. glibc's allocator
//! maps the first of them, and when that is freed raises the size from which it maps (up to 32 MiB): all later ones lie
//! in its heaps, which keep what they once held, each thread's heap for itself. Copying 1 GiB with 64 MiB on their way,
//! the process then peaked at 157 MB and kept 127 MB for good; with a size that stays, at 102 MB and 37 MB.

/// Buffers from this size on are mapped one by one: those that hold much of an object.
const MAPPED_BYTES_MIN: i32 = 1 << 20;

/// Has the allocator map large buffers one by one, and never change its mind. To be called once, before threads that
/// allocate are started; without it nothing is wrong but the memory taken.
pub fn map_large_buffers() {
    // SAFETY: `mallopt` takes plain numbers and locks the allocator itself.
    let accepted = unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, MAPPED_BYTES_MIN) };
    if accepted == 0 {
        tracing::debug!("the allocator does not let large buffers be mapped");
    }
}
