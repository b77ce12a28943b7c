//! Points that two images have in common, made for the purpose: snapshots of a user on a primary in journal mode, which
//! are replayed on the copy in order with the writes.
//!
//! The lock is taken from whoever has it, who gets it back afterwards: the image is brought up to its journal, an epoch of
//! ours begins in that, and the snapshot is journalled as librbd journals it (begun, done, finished) and committed.
//! librbd itself is not asked to make it, so that nothing of its client is under way at it. Removal is asked of the owner of
//! the lock.
//!
//! Reference: `src/librbd/operation/Request.cc`, `src/librbd/operation/SnapshotCreateRequest.cc`.

use journal::append::Appender;
use journal::commit::advanced;
use journal::event::{Event, EventEntry, Op, OpTid};
use journal::types::IMAGE_CLIENT_ID;
use rados::Result;
use rados::error::ResultExt;
use rbd::exclusive_lock::Delegated;
use rbd::watch_notify::Operation;
use rbd::{Features, SnapshotNamespace, Timestamp, snapshots};

use crate::pool::Pool;
use crate::session::Session;

/// Seconds after which nobody can be using such a snapshot any more: another verification may be under way.
const LEFT_BEHIND_S: u32 = 86_400;

/// What the names of such snapshots begin with.
pub const NAME_PREFIX: &str = ".rbd-mirrorctl.verify.";

impl Pool {
    /// Makes the snapshot `name` on a primary; nothing when there is one. EROFS when the owner of the image's lock does
    /// not give it up, EPERM when the image is no primary.
    pub async fn make_checkpoint(&self, image: &str, name: &str) -> Result<()> {
        let what = || format!("cannot make the snapshot '{name}' of image '{}'", self.image_spec(image));
        let session = Session::open(self, image).await.context(what())?;
        session.run(async |session| session.make_checkpoint(name).await).await.context(what())
    }

    /// Removes the snapshot `name` from a primary, and those that were left behind by verifications that died.
    pub async fn remove_checkpoints(&self, image: &str, name: &str) -> Result<()> {
        let what = || {
            format!("cannot remove the snapshots of a verification from image '{}'", self.image_spec(image))
        };
        let session = Session::open(self, image).await.context(what())?;
        session.run(async |session| session.remove_checkpoints(name).await).await.context(what())
    }
}

impl Session {
    async fn make_checkpoint(&mut self, name: &str) -> Result<()> {
        let namespace = SnapshotNamespace::User;
        self.acquire().await?;
        self.refresh().await?;
        if self.header().user_snapshot(name).is_some() {
            return Ok(());
        }
        let op = Op::SnapCreate { namespace: namespace.clone(), name: name.to_string() };
        self.journalled(op, async |session| session.add_snapshot(name, &namespace).await.map(drop)).await
    }

    async fn remove_checkpoints(&mut self, name: &str) -> Result<()> {
        let now = Timestamp::now().seconds;
        let of_ours = |snapshot: &&rbd::Snapshot| {
            let old = now.saturating_sub(snapshot.timestamp.seconds) > LEFT_BEHIND_S;
            let of_ours = snapshot.name == name || old && snapshot.name.starts_with(NAME_PREFIX);
            snapshot.namespace == SnapshotNamespace::User && of_ours
        };
        let names: Vec<String> =
            self.header().snapshots.values().filter(of_ours).map(|s| s.name.clone()).collect();
        for name in names {
            let namespace = SnapshotNamespace::User;
            let operation = Operation::SnapRemove { namespace: namespace.clone(), name: name.clone() };
            if self.delegate(operation).await? == Delegated::DoneByOwner {
                continue;
            }
            let Some(id) = self.header().user_snapshot(&name).map(|snapshot| snapshot.id) else { continue };
            let op = Op::SnapRemove { namespace, name };
            self.journalled(op, async |session| {
                snapshots::remove(session.image(), session.header(), id).await?;
                session.changed();
                session.refresh().await
            })
            .await?;
        }
        Ok(())
    }

    /// Does `work`, which is `op`, and journals that if the image has a journal. The lock is ours, and so is the newest
    /// epoch of the journal.
    async fn journalled(&mut self, op: Op, work: impl AsyncFnOnce(&mut Session) -> Result<()>) -> Result<()> {
        if !self.header().features.has(Features::JOURNALING) {
            return work(self).await;
        }
        let own = self.read_journal().await?;
        let mut appender = Appender::after(&own.journal, own.newest.0, &own.commit_position).await?;
        // Any number will do that no other operation of the epoch has.
        let tid = OpTid(appender.next().entry.0 + 1);
        let entry = |event| EventEntry { event, timestamp: Timestamp::now() };
        let begun = appender.append(&entry(Event::Op { tid, op })).await?;
        let done = work(self).await;
        let result = done.as_ref().err().map_or(0, |error| -error.errno());
        let finished = appender.append(&entry(Event::OpFinish { tid, result })).await?;
        let position = advanced(&own.commit_position, &[finished, begun], own.journal.layout());
        own.journal.client_commit(IMAGE_CLIENT_ID, &position).await?;
        done
    }
}
