//! The metadata object of a journal: how it is cut, how far it has been written and trimmed, who reads it, and its tags.
//!
//! Object `journal.IMAGE_ID`, beside the image's header; only the object class `journal` writes its omap:
//!
//! | key | value |
//! |---|---|
//! | `order` | u8: data objects have 2^order bytes |
//! | `splay_width` | u8: so many data objects are written in turn |
//! | `pool_id` | i64: pool of the data objects, -1 for that of the header |
//! | `minimum_set` | u64: object sets before this one have been removed |
//! | `active_set` | u64: the object set that is being written |
//! | `next_tag_tid`, `next_tag_class` | u64: what the next tag gets |
//! | `client_ID` | [`Client`] |
//! | `tag_TID`, 16 hexadecimal digits | [`Tag`] |
//!
//! Data objects are called `journal_data.HEADER_POOL_ID.IMAGE_ID.N`. Those in a pool of their own lie in its default
//! namespace, whatever the header's is.
//!
//! Everybody who changes the object notifies its watchers with an empty payload, which is how a writer learns that a
//! reader has made room, and a reader that the writer has advanced. A notification is waited for, for at most
//! [`NOTIFY_TIMEOUT`], but a change stands even if it failed.
//!
//! All methods are cancel-safe; whether a change whose future was dropped took effect is unknown.
//!
//! Reference: `src/cls/journal/cls_journal.cc`, `src/cls/journal/cls_journal_client.cc`,
//! `src/journal/JournalMetadata.cc`, `src/journal/Journaler.cc`.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use rados::encoding::{Decode, Decoder, Encode, Encoder};
use rados::error::ResultExt;
use rados::{Error, IoCtx, PoolId, ReadAnswer, ReadOp, ReadSub, Result, SnapId, WriteOp, WriteSub};
use rbd::ImageId;
use rbd::watch_notify::WATCH_TIMEOUT;

use crate::types::{
    Client, ClientData, ClientState, CommitPosition, JournalObject, ObjectSet, Tag, TagClass, TagData, TagTid,
};
use crate::watch::JournalWatch;

/// How long a change waits for watchers to acknowledge its notification.
pub const NOTIFY_TIMEOUT: Duration = Duration::from_secs(5);
/// Orders that a journal may have.
pub const ORDERS: std::ops::RangeInclusive<u8> = 12..=26;
/// Entries asked for at once when something is listed.
const PAGE_ENTRIES: u64 = 256;
/// Attempts at a tag number that others take as well.
const TAG_ATTEMPTS_MAX: usize = 64;
/// Data objects removed at once.
const REMOVALS_IN_FLIGHT: usize = 16;

pub(crate) const CLASS: &str = "journal";
/// The omap key of the metadata object that holds the number of the next tag. The class makes no tags without it.
const NEXT_TAG_KEY: &str = "next_tag_tid";

/// How a journal is cut into objects, and where they lie. It never changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JournalLayout {
    /// Data objects have 2^order bytes.
    pub order: u8,
    /// So many data objects are written in turn.
    pub splay_width: u8,
    /// Pool of the data objects; `None` for that of the header.
    pub pool: Option<PoolId>,
}

impl JournalLayout {
    /// Bytes after which a data object takes no more entries.
    pub fn object_bytes(&self) -> u64 {
        1 << self.order
    }

    /// Number of data objects in a set.
    pub fn splay_width(&self) -> u64 {
        self.splay_width.into()
    }

    /// The set that an object belongs to.
    pub fn set_of(&self, object: JournalObject) -> ObjectSet {
        ObjectSet(object.0 / self.splay_width())
    }

    /// Place of an object in its set.
    pub fn offset_of(&self, object: JournalObject) -> u64 {
        object.0 % self.splay_width()
    }

    /// The object at a place of a set.
    pub fn object(&self, set: ObjectSet, offset: u64) -> JournalObject {
        JournalObject(set.0 * self.splay_width() + offset)
    }

    /// All objects of a set.
    pub fn objects(&self, set: ObjectSet) -> impl Iterator<Item = JournalObject> + use<> {
        let first = set.0 * self.splay_width();
        (first..first + self.splay_width()).map(JournalObject)
    }
}

/// What changes in a journal's metadata.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MutableMetadata {
    /// Object sets before this one have been removed.
    pub minimum_set: ObjectSet,
    /// The object set that is being written.
    pub active_set: ObjectSet,
    /// Everybody who is registered, by id.
    pub clients: Vec<Client>,
}

impl MutableMetadata {
    /// A client.
    pub fn client(&self, id: &str) -> Option<&Client> {
        self.clients.iter().find(|client| client.id == id)
    }
}

/// A journal. Cheap to clone; it holds nothing that changes.
#[derive(Debug, Clone)]
pub struct Journal {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    header: IoCtx,
    data: IoCtx,
    image: ImageId,
    object: String,
    data_prefix: String,
    layout: JournalLayout,
}

/// Name of the metadata object of an image's journal.
pub fn metadata_object(image: &ImageId) -> String {
    format!("journal.{image}")
}

impl Journal {
    /// Opens the journal of an image whose header lies in `header_ioctx`. ENOENT when it has none.
    pub async fn open(header_ioctx: &IoCtx, image: &ImageId) -> Result<Journal> {
        let context = || format!("cannot open the journal of image {image}");
        let reply = header_ioctx.read(layout_read(image)).await.context(context())?;
        let layout = layout_of(&reply.answers).context(context())?;
        Ok(Journal::of(header_ioctx, image, layout))
    }

    /// As [`Journal::open`], and reads a client and the first tags that matter to it, as of one moment. ENOENT also when
    /// the client is not registered.
    pub(crate) async fn open_with_client(
        header_ioctx: &IoCtx,
        image: &ImageId,
        id: &str,
    ) -> Result<(Journal, ClientAndTags)> {
        let context = || format!("cannot open the journal of image {image} and read its client '{id}'");
        let reply = header_ioctx.read(client_read(layout_read(image), id)).await.context(context())?;
        let (layout, client) = reply.answers.split_at(LAYOUT_CALLS.len().min(reply.answers.len()));
        let (layout, client) = (layout_of(layout).context(context())?, client_of(client).context(context())?);
        Ok((Journal::of(header_ioctx, image, layout), client))
    }

    /// Makes an empty journal, without tags and clients. EEXIST when there is one.
    pub async fn create(header_ioctx: &IoCtx, image: &ImageId, layout: JournalLayout) -> Result<Journal> {
        let context = format!("cannot create the journal of image {image}");
        if !ORDERS.contains(&layout.order) || layout.splay_width == 0 {
            let (order, width) = (layout.order, layout.splay_width);
            let what = format!("{context} with order {order} and splay width {width}");
            return Err(Error::new(libc::EINVAL, what));
        }
        let journal = Journal::of(header_ioctx, image, layout);
        let pool = layout.pool.map_or(-1, |pool| pool.0);
        let mut e = Encoder::new();
        e.u8(layout.order).u8(layout.splay_width).i64(pool);
        // The removal of a copy, which frees space, gives it a journal of its own first.
        let op = WriteOp::new(journal.metadata_object()).exec(CLASS, "create", e.finish()).despite_full();
        header_ioctx.write(op).await.context(context)?;
        Ok(journal)
    }

    fn of(header_ioctx: &IoCtx, image: &ImageId, layout: JournalLayout) -> Journal {
        let data = match layout.pool {
            Some(pool) if pool != header_ioctx.pool_id() => header_ioctx.with_pool(pool).with_namespace(""),
            _ => header_ioctx.clone(),
        };
        let data = data.for_data();
        let inner = Inner {
            header: header_ioctx.clone(),
            data,
            image: image.clone(),
            object: metadata_object(image),
            data_prefix: format!("journal_data.{}.{image}.", header_ioctx.pool_id().0),
            layout,
        };
        Journal { inner: Arc::new(inner) }
    }

    /// The image.
    pub fn image(&self) -> &ImageId {
        &self.inner.image
    }

    /// How it is cut.
    pub fn layout(&self) -> &JournalLayout {
        &self.inner.layout
    }

    /// Pool and namespace of the metadata object.
    pub fn header_ioctx(&self) -> &IoCtx {
        &self.inner.header
    }

    /// Pool and namespace of the data objects.
    pub fn data_ioctx(&self) -> &IoCtx {
        &self.inner.data
    }

    /// Name of the metadata object.
    pub fn metadata_object(&self) -> &str {
        &self.inner.object
    }

    /// Name of a data object.
    pub fn data_object(&self, object: JournalObject) -> String {
        format!("{}{object}", self.inner.data_prefix)
    }

    /// What the names of data objects begin with.
    pub(crate) fn data_prefix(&self) -> &str {
        &self.inner.data_prefix
    }

    /// Sets and clients, as of one moment while there are no more than 256 clients.
    pub async fn mutable(&self) -> Result<MutableMetadata> {
        self.read_mutable(None).await.map(|(metadata, _)| metadata)
    }

    /// Sets, clients, and the first tags behind a tag that matter to a client, as of one moment. ENOENT also when the
    /// client is not registered.
    pub(crate) async fn mutable_with_tags(
        &self,
        client: &str,
        after: Option<TagTid>,
    ) -> Result<(MutableMetadata, Vec<Tag>)> {
        let (metadata, tags) = self.read_mutable(Some(tag_list_input(client, None, after))).await?;
        Ok((metadata, tags.into_iter().filter(|tag| Some(tag.tid) > after).collect()))
    }

    async fn read_mutable(&self, tag_list: Option<Bytes>) -> Result<(MutableMetadata, Vec<Tag>)> {
        let context = || format!("cannot read the metadata of {self}");
        let mut op = ReadOp::new(self.metadata_object())
            .exec(CLASS, "get_minimum_set", Bytes::new())
            .exec(CLASS, "get_active_set", Bytes::new())
            .exec(CLASS, "client_list", client_list_input(""));
        let with_tags = tag_list.is_some();
        if let Some(input) = tag_list {
            op = op.exec(CLASS, "tag_list", input);
        }
        let reply = self.inner.header.read(op).await.context(context())?;
        let output = concatenated(&reply.answers);
        let mut d = Decoder::new(&output, "the metadata of a journal");
        let mut read = || {
            let (minimum_set, active_set) = (ObjectSet(d.u64()?), ObjectSet(d.u64()?));
            let clients = d.seq(6, Client::decode)?;
            let tags = if with_tags { d.seq(26, Tag::decode)? } else { Vec::new() };
            Ok((MutableMetadata { minimum_set, active_set, clients }, tags))
        };
        let (mut metadata, tags) = read().map_err(from_decode).context(context())?;
        if metadata.clients.len() as u64 >= PAGE_ENTRIES {
            self.list_clients(&mut metadata.clients).await.context(context())?;
        }
        Ok((metadata, tags))
    }

    /// Everybody who is registered, by id.
    pub async fn clients(&self) -> Result<Vec<Client>> {
        let mut clients = Vec::new();
        self.list_clients(&mut clients).await.context(format!("cannot list the clients of {self}"))?;
        Ok(clients)
    }

    /// Adds the clients behind the last one of `clients`.
    async fn list_clients(&self, clients: &mut Vec<Client>) -> Result<()> {
        loop {
            let after = clients.last().map(|client| client.id.as_str());
            let output = self.read("client_list", client_list_input(after.unwrap_or_default())).await?;
            let page = Decoder::new(&output, "a list of journal clients").seq(6, Client::decode)?;
            let full = page.len() as u64 >= PAGE_ENTRIES;
            // The image's own client has no name.
            let is_new = |client: &Client| after.is_none_or(|after| client.id.as_str() > after);
            let new: Vec<Client> = page.into_iter().filter(is_new).collect();
            // A page that brings nothing new would otherwise be asked for over and over.
            let end = !full || new.is_empty();
            clients.extend(new);
            if end {
                return Ok(());
            }
        }
    }

    /// A client; `None` when it is not registered. ENOENT when there is no journal any more.
    pub async fn client(&self, id: &str) -> Result<Option<Client>> {
        let context = || format!("cannot read client '{id}' of {self}");
        let Some(value) = self.value(client_key(id)).await.context(context())? else {
            return Ok(None);
        };
        let client = Client::from_bytes(&value, "journal client");
        client.map(Some).map_err(from_decode).context(context())
    }

    /// A client and the first tags that matter to it, as of one moment; `None` when it is not registered. ENOENT when
    /// there is no journal any more.
    pub(crate) async fn client_and_tags(&self, id: &str) -> Result<Option<ClientAndTags>> {
        let context = || format!("cannot read client '{id}' and the tags of {self}");
        let op = client_read(ReadOp::new(self.metadata_object()), id);
        match self.inner.header.read(op).await {
            Ok(reply) => client_of(&reply.answers).map(Some).context(context()),
            // Either the client is not registered, or there is no journal.
            Err(error) if error.is_not_found() && self.client(id).await?.is_none() => Ok(None),
            Err(error) => Err(error.context(context())),
        }
    }

    /// Registers a client. It begins where the least advanced client is, or at the beginning of the journal when one has
    /// committed nothing. EEXIST when it is registered.
    pub async fn client_register(&self, id: &str, data: &ClientData) -> Result<()> {
        let registered = self.write("client_register", |e| e.string(id).blob(&data.to_bytes())).await;
        registered.context(format!("cannot register client '{id}' in {self}"))?;
        self.notify().await;
        Ok(())
    }

    /// Replaces a client's data. ENOENT when it is not registered.
    pub async fn client_update_data(&self, id: &str, data: &ClientData) -> Result<()> {
        let updated = self.write("client_update_data", |e| e.string(id).blob(&data.to_bytes())).await;
        updated.context(format!("cannot update the data of client '{id}' of {self}"))?;
        self.notify().await;
        Ok(())
    }

    /// Sets whether a client counts. ENOENT when it is not registered.
    pub async fn client_update_state(&self, id: &str, state: ClientState) -> Result<()> {
        let updated = self.write("client_update_state", |e| e.string(id).u8(state.to_wire())).await;
        updated.context(format!("cannot update the state of client '{id}' of {self}"))?;
        self.notify().await;
        Ok(())
    }

    /// Strikes out a client. ENOENT when it is not registered.
    pub async fn client_unregister(&self, id: &str) -> Result<()> {
        let unregistered = self.write("client_unregister", |e| e.string(id)).await;
        unregistered.context(format!("cannot unregister client '{id}' from {self}"))?;
        self.notify().await;
        Ok(())
    }

    /// Sets how far a client is, be it forward or back. ENOENT when it is not registered.
    pub async fn client_commit(&self, id: &str, position: &CommitPosition) -> Result<()> {
        let committed = self.write("client_commit", |e| e.string(id).value(position)).await;
        committed.context(format!("cannot commit the position of client '{id}' of {self}"))?;
        self.notify().await;
        Ok(())
    }

    /// Tags that matter to a client (those of entries that it has not committed yet, and the one before), of one class
    /// or of all, after a tag or from the first. ENOENT when it is not registered.
    pub async fn tags(
        &self,
        client: &str,
        class: Option<TagClass>,
        after: Option<TagTid>,
    ) -> Result<Vec<Tag>> {
        let context = || format!("cannot list the tags of {self} for client '{client}'");
        let mut tags: Vec<Tag> = Vec::new();
        loop {
            let from = tags.last().map(|tag| tag.tid).or(after);
            let input = tag_list_input(client, class, from);
            let output = self.read("tag_list", input).await.context(context())?;
            let page = Decoder::new(&output, "a list of journal tags").seq(26, Tag::decode);
            let page = page.map_err(from_decode).context(context())?;
            let full = page.len() as u64 >= PAGE_ENTRIES;
            let new: Vec<Tag> = page.into_iter().filter(|tag| Some(tag.tid) > from).collect();
            let end = !full || new.is_empty();
            tags.extend(new);
            if end {
                return Ok(tags);
            }
        }
    }

    /// A tag; `None` when there is none of this number (any more).
    pub async fn tag(&self, tid: TagTid) -> Result<Option<Tag>> {
        let context = || format!("cannot read tag {} of {self}", tid.0);
        let Some(value) = self.value(format!("tag_{:016x}", tid.0)).await.context(context())? else {
            return Ok(None);
        };
        let tag = Tag::from_bytes(&value, "journal tag");
        tag.map(Some).map_err(from_decode).context(context())
    }

    /// The number that the next tag gets.
    pub async fn next_tag_tid(&self) -> Result<TagTid> {
        let context = || format!("cannot read the number of the next tag of {self}");
        let output = self.read("get_next_tag_tid", Bytes::new()).await.context(context())?;
        Decoder::new(&output, "the next tag").u64().map(TagTid).map_err(from_decode).context(context())
    }

    /// The number that the next tag gets, and the set that is appended to, as of one moment.
    async fn next_tag_tid_and_active_set(&self) -> Result<(TagTid, ObjectSet)> {
        let context = || format!("cannot read the number of the next tag and the active set of {self}");
        let op = ReadOp::new(self.metadata_object()).exec(CLASS, "get_next_tag_tid", Bytes::new()).exec(
            CLASS,
            "get_active_set",
            Bytes::new(),
        );
        let reply = self.inner.header.read(op).await.context(context())?;
        let output = concatenated(&reply.answers);
        let mut d = Decoder::new(&output, "the next tag and the active set");
        let mut read = || Ok((TagTid(d.u64()?), ObjectSet(d.u64()?)));
        read().map_err(from_decode).context(context())
    }

    /// Makes the tag of this number, unless somebody else took it or a later one: false then.
    pub async fn try_allocate_tag(&self, tid: TagTid, class: TagClass, data: &TagData) -> Result<bool> {
        let data = data.to_bytes();
        match self.write("tag_create", |e| e.u64(tid.0).u64(class.0).blob(&data)).await {
            Ok(()) => {
                self.notify().await;
                Ok(true)
            }
            Err(e) if e.is(libc::ESTALE) || e.is(libc::EEXIST) => Ok(false),
            Err(e) => Err(e.context(format!("cannot allocate tag {} in {self}", tid.0))),
        }
    }

    /// Makes the next tag. [`TagClass::NEW`] asks for a class of its own.
    pub async fn allocate_tag(&self, class: TagClass, data: &TagData) -> Result<Tag> {
        for _ in 0..TAG_ATTEMPTS_MAX {
            let tid = self.next_tag_tid().await?;
            if self.try_allocate_tag(tid, class, data).await? {
                // Tags expire once newer ones are committed: others may have been quick.
                let made = if class == TagClass::NEW { self.tag(tid).await? } else { None };
                return Ok(made.unwrap_or(Tag { tid, class, data: data.to_bytes() }));
            }
        }
        Err(self.tags_taken())
    }

    /// Makes the next tag of a class. Answers with the set to which its first entry is appended, too.
    pub(crate) async fn allocate_tag_and_set(
        &self,
        class: TagClass,
        data: &TagData,
    ) -> Result<(TagTid, ObjectSet)> {
        for _ in 0..TAG_ATTEMPTS_MAX {
            let (tid, set) = self.next_tag_tid_and_active_set().await?;
            if self.try_allocate_tag(tid, class, data).await? {
                return Ok((tid, set));
            }
        }
        Err(self.tags_taken())
    }

    fn tags_taken(&self) -> Error {
        let why = format!("others took every number {TAG_ATTEMPTS_MAX} times; try again");
        Error::new(libc::EAGAIN, format!("cannot allocate a tag in {self}: {why}"))
    }

    /// Tells that object sets before this one have been removed. ESTALE when it is lower than before, EINVAL when it is
    /// beyond the active set.
    pub async fn set_minimum_set(&self, set: ObjectSet) -> Result<()> {
        let done = self.write("set_minimum_set", |e| e.u64(set.0)).await;
        done.context(format!("cannot set the minimum set of {self} to {set}"))?;
        self.notify().await;
        Ok(())
    }

    /// Tells that this object set is being written. ESTALE when it is lower than before, EINVAL when it is before the
    /// minimum set.
    pub async fn set_active_set(&self, set: ObjectSet) -> Result<()> {
        let done = self.write("set_active_set", |e| e.u64(set.0)).await;
        done.context(format!("cannot set the active set of {self} to {set}"))?;
        self.notify().await;
        Ok(())
    }

    /// The version of the metadata object: it grows with every change. ENOENT when there is no journal.
    pub(crate) async fn version(&self) -> Result<u64> {
        let op = ReadOp::new(self.metadata_object()).with(ReadSub::AssertExists);
        let read = self.inner.header.read(op).await;
        Ok(read.context(format!("cannot read the version of {self}"))?.version)
    }

    /// Closes the journal to tags, if its metadata are still those of this version: false when they are not. Whoever tries
    /// to make a tag from then on fails (ENOENT).
    pub(crate) async fn close_to_tags(&self, version: u64) -> Result<bool> {
        let close =
            WriteOp::new(self.metadata_object()).with(WriteSub::AssertVersion(version)).despite_full();
        match self.inner.header.write(close.with(WriteSub::OmapRemove(vec![NEXT_TAG_KEY.into()]))).await {
            Ok(_) => Ok(true),
            Err(error) if error.is(libc::ERANGE) || error.is(libc::EOVERFLOW) => Ok(false),
            Err(error) => Err(error.context(format!("cannot close {self} to tags"))),
        }
    }

    /// True when the journal takes no tags.
    pub(crate) async fn is_closed_to_tags(&self) -> Result<bool> {
        Ok(self.value(NEXT_TAG_KEY.into()).await.context(format!("cannot read {self}"))?.is_none())
    }

    /// Opens the journal to tags again, if its metadata are still those of this version: false when they are not.
    pub(crate) async fn open_to_tags(&self, version: u64, next: TagTid) -> Result<bool> {
        let mut number = Encoder::new();
        number.u64(next.0);
        let open = WriteOp::new(self.metadata_object()).with(WriteSub::AssertVersion(version)).despite_full();
        let set = WriteSub::OmapSet(vec![(NEXT_TAG_KEY.into(), number.finish())]);
        match self.inner.header.write(open.with(set)).await {
            Ok(_) => Ok(true),
            Err(error) if error.is(libc::ERANGE) || error.is(libc::EOVERFLOW) => Ok(false),
            Err(error) => Err(error.context(format!("cannot open {self} to tags"))),
        }
    }

    /// Removes the journal with all its entries, whoever is registered. Can be repeated after it was cut off; no error
    /// when it is gone. Nobody may be writing to it.
    pub async fn remove(&self) -> Result<()> {
        let context = || format!("cannot remove {self}");
        let Some(metadata) = self.mutable().await.optional().context(context())? else { return Ok(()) };
        let mut set = metadata.minimum_set;
        // A writer that died may have begun the set after the active one.
        while self.remove_set(set).await.context(context())? || set <= metadata.active_set {
            set = ObjectSet(set.0 + 1);
        }
        let removed = self.inner.header.remove(self.metadata_object()).await.optional();
        removed.context(context()).map(drop)
    }

    /// Removes the objects of a set; answers whether there were any.
    pub(crate) async fn remove_set(&self, set: ObjectSet) -> Result<bool> {
        let removals = stream::iter(self.layout().objects(set)).map(|object| async move {
            Ok(self.inner.data.remove(&self.data_object(object)).await.optional()?.is_some())
        });
        let found = removals.buffer_unordered(REMOVALS_IN_FLIGHT);
        found.try_fold(false, |any, found| async move { Ok::<_, Error>(any | found) }).await
    }

    /// Watches the metadata object. ENOENT when there is no journal.
    pub async fn watch(&self) -> Result<JournalWatch> {
        let watch = self.inner.header.watch(self.metadata_object(), WATCH_TIMEOUT).await;
        Ok(JournalWatch::new(watch.context(format!("cannot watch {self}"))?))
    }

    /// Tells the watchers that the metadata changed. Failing to is no error: they look by themselves from time to time.
    pub(crate) async fn notify(&self) {
        if let Err(e) = self.inner.header.notify(self.metadata_object(), Bytes::new(), NOTIFY_TIMEOUT).await {
            tracing::debug!("a watcher of {self} was not told of a change: {e}");
        }
    }

    async fn read(&self, method: &str, input: Bytes) -> Result<Bytes> {
        self.inner.header.exec(self.metadata_object(), CLASS, method, input).await
    }

    async fn write(&self, method: &str, input: impl FnOnce(&mut Encoder) -> &mut Encoder) -> Result<()> {
        let mut e = Encoder::new();
        input(&mut e);
        let op = WriteOp::new(self.metadata_object()).exec(CLASS, method, e.finish());
        self.inner.header.write(op).await.map(drop)
    }

    /// The value of a key; `None` when there is none, ENOENT when there is no object. The class's methods do not tell
    /// these apart.
    async fn value(&self, key: String) -> Result<Option<Bytes>> {
        let sub = ReadSub::OmapGetByKeys(vec![key]);
        match self.inner.header.read_one(self.metadata_object(), SnapId::HEAD, sub).await? {
            ReadAnswer::Omap(page) => Ok(page.entries.into_iter().next().map(|(_, value)| value)),
            _ => Err(Error::new(libc::EBADMSG, "an omap was read, and something else came")),
        }
    }
}

impl std::fmt::Display for Journal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the journal of image {}", self.inner.image)
    }
}

fn client_list_input(after: &str) -> Bytes {
    let mut e = Encoder::new();
    e.string(after).u64(PAGE_ENTRIES);
    e.finish()
}

/// Class methods that tell how a journal is cut.
const LAYOUT_CALLS: [&str; 3] = ["get_order", "get_splay_width", "get_pool_id"];

fn layout_read(image: &ImageId) -> ReadOp {
    let op = ReadOp::new(metadata_object(image));
    LAYOUT_CALLS.iter().fold(op, |op, call| op.exec(CLASS, call, Bytes::new()))
}

fn layout_of(answers: &[ReadAnswer]) -> Result<JournalLayout> {
    let output = concatenated(answers);
    let mut d = Decoder::new(&output, "the metadata of a journal");
    let mut read = || {
        let (order, splay_width, pool) = (d.u8()?, d.u8()?, d.i64()?);
        if !ORDERS.contains(&order) || splay_width == 0 {
            return Err(d.invalid(format!("order {order}, splay width {splay_width}")));
        }
        Ok(JournalLayout { order, splay_width, pool: (pool >= 0).then_some(PoolId(pool)) })
    };
    read().map_err(from_decode)
}

/// A client, and the tags that matter to it.
#[derive(Debug)]
pub(crate) struct ClientAndTags {
    pub(crate) client: Client,
    pub(crate) tags: Vec<Tag>,
    /// There may be more tags behind these.
    pub(crate) more: bool,
}

fn client_read(op: ReadOp, id: &str) -> ReadOp {
    let client = ReadSub::OmapGetByKeys(vec![client_key(id)]);
    op.with(client).exec(CLASS, "tag_list", tag_list_input(id, None, None))
}

fn client_of(answers: &[ReadAnswer]) -> Result<ClientAndTags> {
    let [ReadAnswer::Omap(client), ReadAnswer::Data(tags)] = answers else {
        return Err(Error::new(libc::EBADMSG, "a client and tags were asked for, and something else came"));
    };
    // The tags of a client that is not registered are refused.
    let [(_, client)] = client.entries.as_slice() else {
        return Err(Error::new(libc::EBADMSG, "a client has tags, and is not there"));
    };
    let client = Client::from_bytes(client, "journal client").map_err(from_decode)?;
    let tags = Decoder::new(tags, "a list of journal tags").seq(26, Tag::decode).map_err(from_decode)?;
    let more = tags.len() as u64 >= PAGE_ENTRIES;
    Ok(ClientAndTags { client, tags, more })
}

fn client_key(id: &str) -> String {
    format!("client_{id}")
}

/// The class takes 0 for no limit: tag 0 comes again behind itself.
fn tag_list_input(client: &str, class: Option<TagClass>, after: Option<TagTid>) -> Bytes {
    let mut e = Encoder::new();
    e.u64(after.map_or(0, |tid| tid.0)).u64(PAGE_ENTRIES).string(client).bool(class.is_some());
    if let Some(class) = class {
        e.u64(class.0);
    }
    e.finish()
}

fn from_decode(error: rados::encoding::DecodeError) -> Error {
    Error::from(error)
}

/// The outputs of class methods, one after another.
fn concatenated(answers: &[ReadAnswer]) -> Bytes {
    let mut all = Vec::new();
    for answer in answers {
        if let ReadAnswer::Data(data) = answer {
            all.extend_from_slice(data);
        }
    }
    all.into()
}
