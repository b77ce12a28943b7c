// Object operations over librados' C++ interface, as plain C functions for ops.rs (declared in ffi.rs).
//
// The C interface of librados has no list_snaps and no sparse_read, keeps the snapshot to read at and the snapshot
// context to write under as state of an I/O context (so that concurrent operations would race), and copies all data
// once more. The C++ interface has none of these limits. Reference: rados/librados.hpp, rados/buffer.h.
//
// Ownership: an op is made by rs_*_new, filled, submitted at most once, and freed by rs_*_free, which must not happen
// between a successful submission and its callback. Nothing throws across the boundary: functions are noexcept, and
// running out of memory ends the process as it does in Rust.

#include <cerrno>
#include <cstdint>
#include <cstring>
#include <ctime>
#include <list>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include <rados/librados.hpp>

using librados::bufferlist;

namespace {

// What a sub-operation has in rval until librados stores its result.
constexpr int NO_RESULT = INT32_MIN;

// Data at least so long is lent to librados instead of copied: below it, a copy is cheaper than the bookkeeping.
constexpr size_t LEND_BYTES_MIN = 16384;

struct Slice {
  const char *data;
  size_t length;

  std::string str() const { return std::string(data, length); }
};

bufferlist copied(Slice s)
{
  bufferlist bl;
  if (s.length > 0) {
    bl.append(s.data, s.length);
  }
  return bl;
}

// Result of one sub-operation of a read; librados stores into it, so it must not move.
struct ReadResult {
  int rval = NO_RESULT;
  bool more = false;
  uint64_t size = 0;
  struct timespec mtime = {0, 0};
  bufferlist data;
  std::map<uint64_t, uint64_t> extents;
  std::map<std::string, bufferlist> omap;
  librados::snap_set_t snaps;
  std::list<obj_watch_t> watchers;
};

}  // namespace

struct rs_read {
  librados::ObjectReadOperation op;
  std::vector<ReadResult> results;  // reserved for all sub-operations up front: never reallocates
  librados::IoCtx at_snap;          // own copy of the context when a snapshot is read, kept until the completion

  ReadResult &next() { return results.emplace_back(); }
};

struct rs_write {
  librados::ObjectWriteOperation op;
  // One more reference to every lent buffer. While it is the only one, librados has dropped all of its own.
  std::vector<ceph::bufferptr> lent;

  bufferlist data(Slice s)
  {
    if (s.length < LEND_BYTES_MIN) {
      return copied(s);
    }
    // A static buffer is never written to and never freed by librados.
    ceph::bufferptr p(ceph::buffer::create_static(s.length, const_cast<char *>(s.data)));
    lent.push_back(p);
    bufferlist bl;
    bl.push_back(std::move(p));
    return bl;
  }
};

struct rs_buffer {
  bufferlist data;
};

struct rs_extent {
  uint64_t offset;
  uint64_t length;
};

extern "C" {

// ---- reads

rs_read *rs_read_new(size_t subs) noexcept
{
  auto *r = new rs_read;
  r->results.reserve(subs);
  return r;
}

void rs_read_free(rs_read *r) noexcept { delete r; }

void rs_read_read(rs_read *r, uint64_t offset, uint64_t length) noexcept
{
  auto &result = r->next();
  r->op.read(offset, length, &result.data, &result.rval);
}

void rs_read_sparse(rs_read *r, uint64_t offset, uint64_t length) noexcept
{
  auto &result = r->next();
  r->op.sparse_read(offset, length, &result.extents, &result.data, &result.rval);
}

void rs_read_stat(rs_read *r) noexcept
{
  auto &result = r->next();
  r->op.stat2(&result.size, &result.mtime, &result.rval);
}

void rs_read_checksum(rs_read *r, int type, Slice seed, uint64_t offset, uint64_t length, uint32_t chunk) noexcept
{
  auto &result = r->next();
  r->op.checksum(static_cast<rados_checksum_type_t>(type), copied(seed), offset, length, chunk, &result.data,
                 &result.rval);
}

void rs_read_list_snaps(rs_read *r) noexcept
{
  auto &result = r->next();
  r->op.list_snaps(&result.snaps, &result.rval);
}

void rs_read_list_watchers(rs_read *r) noexcept
{
  auto &result = r->next();
  r->op.list_watchers(&result.watchers, &result.rval);
}

void rs_read_getxattr(rs_read *r, Slice name) noexcept
{
  auto &result = r->next();
  r->op.getxattr(name.str().c_str(), &result.data, &result.rval);
}

void rs_read_omap(rs_read *r, Slice after, Slice prefix, uint64_t max) noexcept
{
  auto &result = r->next();
  r->op.omap_get_vals2(after.str(), prefix.str(), max, &result.omap, &result.more, &result.rval);
}

void rs_read_omap_by_keys(rs_read *r, const Slice *keys, size_t count) noexcept
{
  auto &result = r->next();
  std::set<std::string> wanted;
  for (size_t i = 0; i < count; ++i) {
    wanted.insert(keys[i].str());
  }
  r->op.omap_get_vals_by_keys(wanted, &result.omap, &result.rval);
}

void rs_read_exec(rs_read *r, Slice cls, Slice method, Slice input) noexcept
{
  auto &result = r->next();
  bufferlist in = copied(input);
  r->op.exec(cls.str().c_str(), method.str().c_str(), in, &result.data, &result.rval);
}

void rs_read_assert_exists(rs_read *r) noexcept
{
  r->next();
  r->op.assert_exists();
}

void rs_read_assert_version(rs_read *r, uint64_t version) noexcept
{
  r->next();
  r->op.assert_version(version);
}

// Submits at a snapshot; on success the callback is called once, on a thread of librados, and *completion is to be
// released with rs_completion_release.
int rs_read_submit(rs_read *r, rados_ioctx_t io, Slice object, uint64_t snap, rados_callback_t callback, void *arg,
                   librados::AioCompletion **completion) noexcept
{
  librados::IoCtx head;
  librados::IoCtx::from_rados_ioctx_t(io, head);
  librados::IoCtx *ctx = &head;
  if (snap != LIBRADOS_SNAP_HEAD) {
    r->at_snap.dup(head);
    r->at_snap.snap_set_read(snap);
    ctx = &r->at_snap;
  }
  auto *c = librados::Rados::aio_create_completion(arg, callback);
  int rval = ctx->aio_operate(object.str(), c, &r->op, 0, nullptr);
  if (rval < 0) {
    c->release();
  } else {
    *completion = c;
  }
  return rval;
}

// ---- results of reads: valid after the callback

int rs_read_rval(const rs_read *r, size_t i) noexcept { return r->results[i].rval; }

// Takes the data of a sub-operation; null when it is empty. Contiguous already unless it came in pieces.
rs_buffer *rs_read_take(rs_read *r, size_t i, const char **data, size_t *length) noexcept
{
  auto &result = r->results[i];
  *length = result.data.length();
  if (*length == 0) {
    return nullptr;
  }
  auto *buffer = new rs_buffer{std::move(result.data)};
  *data = buffer->data.c_str();
  return buffer;
}

void rs_buffer_free(rs_buffer *buffer) noexcept { delete buffer; }

void rs_read_get_stat(const rs_read *r, size_t i, uint64_t *size, int64_t *mtime_seconds) noexcept
{
  *size = r->results[i].size;
  *mtime_seconds = r->results[i].mtime.tv_sec;
}

size_t rs_read_extents(const rs_read *r, size_t i, rs_extent *out, size_t max) noexcept
{
  const auto &extents = r->results[i].extents;
  size_t n = 0;
  for (const auto &[offset, length] : extents) {
    if (n == max) {
      break;
    }
    out[n++] = {offset, length};
  }
  return extents.size();
}

// Visits omap entries in key order; returns whether there are more behind them.
int rs_read_visit_omap(rs_read *r, size_t i, void (*visit)(void *, Slice key, Slice value), void *arg) noexcept
{
  auto &result = r->results[i];
  for (auto &[key, value] : result.omap) {
    size_t length = value.length();
    visit(arg, {key.data(), key.size()}, {length > 0 ? value.c_str() : nullptr, length});
  }
  return result.more;
}

void rs_read_visit_watchers(const rs_read *r, size_t i,
                            void (*visit)(void *, Slice address, int64_t client, uint64_t cookie, uint32_t timeout),
                            void *arg) noexcept
{
  for (const auto &watcher : r->results[i].watchers) {
    size_t length = strnlen(watcher.addr, sizeof(watcher.addr));
    visit(arg, {watcher.addr, length}, watcher.watcher_id, watcher.cookie, watcher.timeout_seconds);
  }
}

// Visits clones, oldest first; returns the newest snapshot id that the object has seen.
uint64_t rs_read_visit_clones(const rs_read *r, size_t i,
                              void (*visit)(void *, uint64_t id, uint64_t size, const uint64_t *snaps, size_t snap_count,
                                            const rs_extent *overlap, size_t overlap_count),
                              void *arg) noexcept
{
  const auto &set = r->results[i].snaps;
  for (const auto &clone : set.clones) {
    std::vector<rs_extent> overlap;
    for (const auto &[offset, length] : clone.overlap) {
      overlap.push_back({offset, length});
    }
    visit(arg, clone.cloneid, clone.size, clone.snaps.data(), clone.snaps.size(), overlap.data(), overlap.size());
  }
  return set.seq;
}

// ---- writes

rs_write *rs_write_new() noexcept { return new rs_write; }

void rs_write_free(rs_write *w) noexcept { delete w; }

// True when librados holds no lent buffer any more. Once true it stays true: only holders can make new references.
int rs_write_returned(const rs_write *w) noexcept
{
  for (const auto &p : w->lent) {
    if (p.raw_nref() != 1) {
      return 0;
    }
  }
  return 1;
}

void rs_write_create(rs_write *w, int exclusive) noexcept { w->op.create(exclusive != 0); }

void rs_write_write(rs_write *w, uint64_t offset, Slice data) noexcept { w->op.write(offset, w->data(data)); }

void rs_write_write_full(rs_write *w, Slice data) noexcept { w->op.write_full(w->data(data)); }

void rs_write_append(rs_write *w, Slice data) noexcept { w->op.append(w->data(data)); }

void rs_write_zero(rs_write *w, uint64_t offset, uint64_t length) noexcept { w->op.zero(offset, length); }

void rs_write_truncate(rs_write *w, uint64_t size) noexcept { w->op.truncate(size); }

void rs_write_remove(rs_write *w) noexcept { w->op.remove(); }

void rs_write_rollback(rs_write *w, uint64_t snap) noexcept { w->op.selfmanaged_snap_rollback(snap); }

void rs_write_alloc_hint(rs_write *w, uint64_t object_size, uint64_t write_size) noexcept
{
  w->op.set_alloc_hint(object_size, write_size);
}

void rs_write_setxattr(rs_write *w, Slice name, Slice value) noexcept
{
  w->op.setxattr(name.str().c_str(), copied(value));
}

void rs_write_rmxattr(rs_write *w, Slice name) noexcept { w->op.rmxattr(name.str().c_str()); }

void rs_write_cmpxattr(rs_write *w, Slice name, Slice value) noexcept
{
  w->op.cmpxattr(name.str().c_str(), LIBRADOS_CMPXATTR_OP_EQ, copied(value));
}

void rs_write_omap_set(rs_write *w, const Slice *keys, const Slice *values, size_t count) noexcept
{
  std::map<std::string, bufferlist> entries;
  for (size_t i = 0; i < count; ++i) {
    entries[keys[i].str()] = copied(values[i]);
  }
  w->op.omap_set(entries);
}

void rs_write_omap_remove(rs_write *w, const Slice *keys, size_t count) noexcept
{
  std::set<std::string> gone;
  for (size_t i = 0; i < count; ++i) {
    gone.insert(keys[i].str());
  }
  w->op.omap_rm_keys(gone);
}

void rs_write_omap_clear(rs_write *w) noexcept { w->op.omap_clear(); }

void rs_write_exec(rs_write *w, Slice cls, Slice method, Slice input) noexcept
{
  bufferlist in = copied(input);
  w->op.exec(cls.str().c_str(), method.str().c_str(), in);
}

void rs_write_assert_exists(rs_write *w) noexcept { w->op.assert_exists(); }

void rs_write_assert_version(rs_write *w, uint64_t version) noexcept { w->op.assert_version(version); }

// Submits under a snapshot context, with force also when the pool is full; callback and *completion as in rs_read_submit.
int rs_write_submit(rs_write *w, rados_ioctx_t io, Slice object, uint64_t snap_seq, const uint64_t *snaps,
                    size_t snap_count, int force, rados_callback_t callback, void *arg,
                    librados::AioCompletion **completion) noexcept
{
  librados::IoCtx ctx;
  librados::IoCtx::from_rados_ioctx_t(io, ctx);
  std::vector<librados::snap_t> snap_ids(snaps, snaps + snap_count);
  auto *c = librados::Rados::aio_create_completion(arg, callback);
  int flags = force ? librados::OPERATION_FULL_FORCE : librados::OPERATION_NOFLAG;
  int rval = ctx.aio_operate(object.str(), c, &w->op, snap_seq, snap_ids, flags, nullptr);
  if (rval < 0) {
    c->release();
  } else {
    *completion = c;
  }
  return rval;
}

// ---- completions

// Asks librados to give an operation up. The callback still comes, with ECANCELED unless the answer was faster.
void rs_completion_cancel(rados_ioctx_t io, librados::AioCompletion *c) noexcept
{
  rados_aio_cancel(io, reinterpret_cast<rados_completion_t>(c->pc));
}

void rs_completion_release(librados::AioCompletion *c) noexcept { c->release(); }

}  // extern "C"
