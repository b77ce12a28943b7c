//! A session: both images and their journals open and watched, followed until the pair changes its nature.
//!
//! The exclusive lock of the local image is held while it is copied or replayed, and nobody who asks for it gets it: the
//! image is not primary. A promotion is a tag in the local journal, made without the lock; the session that sees it stops
//! writing, awaits what is in flight, and only then gives up the lock, which whoever opens the promoted image asks for. He
//! is told to wait from then on, and does not wait for the remote cluster ([`Lifeline`]).
//!
//! Reference: `OpenLocalImageRequest.cc` (`MirrorExclusiveLockPolicy`), `journal/Replayer.cc` in
//! `src/tools/rbd_mirror/image_replayer/`.

use rbd::mirroring::StatusState;
use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use futures::try_join;
use journal::Journal;
use journal::bootstrap::{
    LocalView, Owner, PeerView, Plan, Registration, RemoteView, Resync, Stop, View, plan,
};
use journal::image_journal::tags_for;
use journal::local_tag::{LocalTag, local_tag};
use journal::replay::{Marker, read_marker};
use journal::types::{
    Client, ClientData, ClientState, EntryPosition, IMAGE_CLIENT_ID, MirrorPeer, MirrorPeerState, TagData,
    TagTid,
};
use journal::watch::{JournalEvent, JournalWatch};
use rados::{ErrorClass, Result};
use rbd::Features;
use rbd::exclusive_lock::{ExclusiveLock, LockOptions, LockReport, LockState, RequestPolicy};
use rbd::pool_metadata::pool_metadata;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

use super::{Journalled, yet_to_be_copied};
use crate::image::lifeline::Lifeline;
use crate::image::name::NameFollower;
use crate::image::{ImageContext, bootstrap};
use crate::report::Report;
use crate::settings::JournalSettings;

/// How often an image that is waited for is looked at.
const WAITING_CHECK_INTERVAL: Duration = Duration::from_secs(30);

/// What is said while a resync that was asked for cannot begin.
pub(super) const RESYNC_WAITS: &str = "resync requested: waiting until the remote image is primary";

/// Why a session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// The task was told to end.
    Cancelled,
    /// Find out anew what there is, after a pause.
    Again(Duration),
    /// Remove the copy, and make it anew.
    Discard,
}

/// What the remote journal tells of this site and of the remote image.
#[derive(Debug, Clone)]
pub(super) struct Registered {
    /// Tags, oldest first.
    pub(super) tags: Vec<(TagTid, TagData)>,
    /// This site's client, and what it says when a mirror made it.
    pub(super) client: Option<(Client, Option<MirrorPeer>)>,
}

impl Registered {
    /// What this site's client says; of a client that is not one, that nothing has been copied.
    pub(super) fn peer(&self, local: &rbd::ImageId) -> MirrorPeer {
        let peer = self.client.as_ref().and_then(|(_, peer)| peer.clone());
        peer.unwrap_or_else(|| yet_to_be_copied(local))
    }
}

/// Both images, open.
pub(super) struct Session<'a> {
    pub(super) ctx: &'a ImageContext,
    pub(super) local: Journalled,
    pub(super) remote: Journalled,
    pub(super) registered: Registered,
    /// Watches the local header, too.
    pub(super) lock: ExclusiveLock,
    pub(super) lock_report: watch::Receiver<LockReport>,
    /// What is set for the pool of the copy.
    pub(super) pool_metadata: BTreeMap<String, Bytes>,
    /// Entries up to here are in the sync point that the copy was made from, and not all of them are committed.
    pub(super) copy_holds: Option<EntryPosition>,
    /// Changes of the local header that have been looked at.
    pub(super) updates_seen: u64,
    pub(super) own_watch: JournalWatch,
    pub(super) their_watch: JournalWatch,
    pub(super) lifeline: &'a Lifeline,
    /// To be answered when the copy has what the remote journal had when they were taken.
    pub(super) flushing: Vec<oneshot::Sender<()>>,
    pub(super) name: NameFollower,
    /// What of the image state could not be applied after a copy, as a sentence.
    pub(super) not_applied: Option<String>,
    /// The removal of sync points of the remote image.
    pub(super) tidying: Option<JoinHandle<Result<()>>>,
}

impl<'a> Session<'a> {
    /// Opens a session on two images. `own_watch` is that of the local journal, by which the line is severed.
    pub(super) async fn open(
        ctx: &'a ImageContext,
        local: Journalled,
        remote: Journalled,
        own_watch: JournalWatch,
        lifeline: &'a Lifeline,
    ) -> Result<Session<'a>> {
        let options = LockOptions {
            policy: RequestPolicy::Refuse,
            object_map: local.image.header.features.has(Features::OBJECT_MAP),
        };
        let (their_watch, lock) = try_join!(
            remote.journal.journal.watch(),
            ExclusiveLock::open(&ctx.local, local.image.image.id(), options),
        )?;
        Ok(Session {
            registered: Registered { tags: Vec::new(), client: None },
            lock_report: lock.report(),
            pool_metadata: BTreeMap::new(),
            copy_holds: None,
            updates_seen: 0,
            lock,
            own_watch,
            their_watch,
            lifeline,
            flushing: Vec::new(),
            name: NameFollower::default(),
            not_applied: None,
            tidying: None,
            local,
            remote,
            ctx,
        })
    }

    /// Follows the pair. The session is closed when this returns, whatever it returns.
    pub(super) async fn run(mut self) -> Result<End> {
        let (promoted, policy) = (self.lifeline.promoted(), self.lock.policy_setter());
        let hand_over = async {
            promoted.cancelled().await;
            policy.set(RequestPolicy::HandOver);
            std::future::pending().await
        };
        let end = tokio::select! {
            end = self.follow() => end,
            never = hand_over => never,
        };
        if let Some(task) = self.tidying.take() {
            // It is taken up again by whoever follows the image next.
            task.abort();
        }
        let id = self.local.image.image.id().clone();
        // By its own watch it hears of who must not wait for the end of theirs.
        let closed =
            [self.lock.close().await, self.their_watch.unregister().await, self.own_watch.unregister().await];
        for error in closed.into_iter().filter_map(Result::err) {
            tracing::debug!(image = %id, "cannot close an image in order: {error}");
        }
        end
    }

    async fn follow(&mut self) -> Result<End> {
        loop {
            if self.ctx.cancel.is_cancelled() {
                return Ok(End::Cancelled);
            }
            self.look().await?;
            let plan = self.plan();
            if let Plan::Stop(stop) = plan {
                if stop == Stop::LocalPrimary {
                    return Ok(End::Again(Duration::ZERO));
                }
                let (state, description) = describe(&stop);
                self.say(state, &description);
                self.flushing.clear();
                self.lock.release().await?;
                match self.wait().await? {
                    Some(end) => return Ok(end),
                    None => continue,
                }
            }
            if !self.lock.is_held() {
                // What was looked at may have changed before it was taken.
                match self.acquire().await? {
                    Some(end) => return Ok(end),
                    None => continue,
                }
            }
            bootstrap::follow_parent(self.ctx, &mut self.local.image, &self.remote.image).await?;
            let end = match plan {
                Plan::FirstCopy => self.first_copy().await?,
                Plan::Resync(why) => self.resync(why).await?,
                Plan::Replay(registration) => match self.register(registration).await? {
                    true => match self.copied_demotion() {
                        Some(demotion) if self.local.journal.follow(&demotion).await? => None,
                        Some(_) => Some(End::Again(Duration::ZERO)),
                        None => self.follow_journal().await?,
                    },
                    false => None,
                },
                Plan::Create | Plan::Stop(_) => Some(End::Again(Duration::ZERO)),
            };
            if let Some(end) = end {
                return Ok(end);
            }
        }
    }

    /// Reads both headers and journals.
    async fn look(&mut self) -> Result<()> {
        let (local, remote) = (&mut self.local, &mut self.remote);
        let theirs = async {
            remote.journal.refresh().await?;
            registered(remote, &self.ctx.local_mirror_uuid).await
        };
        let ours = (local.image.refresh(), local.journal.refresh(), pool_metadata(&self.ctx.local));
        let ((), (), pool_metadata, registered) = try_join!(ours.0, ours.1, ours.2, theirs)?;
        (self.registered, self.pool_metadata) = (registered, pool_metadata);
        Ok(())
    }

    /// The options of journal mode for this image, as last read.
    pub(super) fn settings(&self) -> JournalSettings {
        self.ctx.journal.of_image(&self.local.image.header.metadata, &self.pool_metadata)
    }

    fn plan(&self) -> Plan {
        let client = self.registered.client.as_ref();
        plan(&View {
            local_mirror_uuid: &self.ctx.local_mirror_uuid,
            remote_mirror_uuid: &self.ctx.remote_mirror_uuid,
            local: Some(LocalView {
                image: self.local.image.image.id(),
                tag: &self.local.journal.newest.1,
                resync_requested: self.local.journal.resync_requested,
            }),
            remote: RemoteView {
                tags: &self.registered.tags,
                client: client.map(|(client, peer)| PeerView { state: client.state, peer: peer.as_ref() }),
            },
            resync_after_disconnect: self.settings().resync_after_disconnect,
        })
    }

    /// The local tag of the remote image's demotion, when the copy was made of the image as it was demoted: all that its
    /// journal holds is in the copy then, the entry of the demotion, too, and with no entry to be replayed nothing else would
    /// untie the copy.
    fn copied_demotion(&self) -> Option<TagData> {
        let (tid, tag) = self.registered.tags.last()?;
        let committed = self.registered.client.as_ref()?.0.commit_position.newest()?;
        if Owner::of(tag) != Owner::Orphan || committed.tag < *tid {
            return None;
        }
        let newest = &self.local.journal.newest.1;
        match local_tag(tag, newest, &self.ctx.local_mirror_uuid, &self.ctx.remote_mirror_uuid) {
            LocalTag::Demote(data) => Some(data),
            _ => None,
        }
    }

    /// Does what is to be done about this site's client before entries are replayed. False when the copy cannot be
    /// replayed into, after all.
    async fn register(&mut self, registration: Registration) -> Result<bool> {
        let peer = self.registered.peer(self.local.image.image.id());
        let replaying = MirrorPeer { state: MirrorPeerState::Replaying, ..peer };
        match registration {
            Registration::Fine => {}
            Registration::NoLongerSyncing => self.store_peer(replaying).await?,
            Registration::Missing { promoted_in } => {
                return self.register_missing(replaying, promoted_in).await;
            }
        }
        Ok(true)
    }

    /// Registers this site where it was not. Entries that nobody kept for it may be gone by then: unless it can be told
    /// that the copy lacks none, it is brought in line. The wish for that comes first, so that nobody begins to replay
    /// before it is told.
    async fn register_missing(&mut self, peer: MirrorPeer, promoted_in: Option<TagTid>) -> Result<bool> {
        let (journal, id) = (self.their_journal(), self.ctx.local_mirror_uuid.to_string());
        self.local.journal.set_resync(true).await?;
        journal.client_register(&id, &ClientData::MirrorPeer(peer)).await?;
        self.registered = registered(&self.remote, &id).await?;
        let begins = self.registered.client.as_ref().and_then(|(client, _)| client.commit_position.newest());
        let complete = match (begins, promoted_in) {
            (None, _) => true,
            (Some(begins), Some(promotion)) => begins.tag < promotion,
            (Some(begins), None) => {
                let marker = read_marker(&self.local.image.image).await?;
                let (tag, uuid) = (self.local.journal.newest.0, &*self.ctx.remote_mirror_uuid);
                let counts = |marker: &Marker| marker.local_tag == tag && marker.remote_mirror_uuid == uuid;
                marker.filter(counts).is_some_and(|marker| begins <= marker.done)
            }
        };
        if complete {
            self.local.journal.set_resync(false).await?;
        } else {
            tracing::warn!(
                image = %self.ctx.global_image_id,
                "this site was not registered in the remote journal, which may have lost entries: automatic resync"
            );
        }
        Ok(complete)
    }

    /// Stores what this site's client says.
    pub(super) async fn store_peer(&mut self, peer: MirrorPeer) -> Result<()> {
        let data = ClientData::MirrorPeer(peer.clone());
        self.their_journal().client_update_data(&self.ctx.local_mirror_uuid, &data).await?;
        if let Some((_, stored)) = &mut self.registered.client {
            *stored = Some(peer);
        }
        Ok(())
    }

    /// Strikes out sync points, which are gone.
    pub(super) async fn forget_sync_points(&mut self) -> Result<()> {
        let peer = self.registered.peer(self.local.image.image.id());
        if peer.sync_points.is_empty() {
            return Ok(());
        }
        self.store_peer(MirrorPeer { sync_points: Vec::new(), ..peer }).await
    }

    pub(super) fn their_journal(&self) -> Journal {
        self.remote.journal.journal.clone()
    }

    /// Takes the exclusive lock, however long its owner takes to give it up. Answers with how to end the session, if so.
    async fn acquire(&mut self) -> Result<Option<End>> {
        let ctx = self.ctx;
        self.say(StatusState::StartingReplay, "starting replay");
        let acquired = self.lock.acquire();
        tokio::pin!(acquired);
        loop {
            tokio::select! {
                biased;
                () = ctx.cancel.cancelled() => return Ok(Some(End::Cancelled)),
                () = ctx.changed.notified() => {
                    // That this daemon made the copy is among what is announced.
                    let (local, remote) = (self.local.image.image.id(), self.remote.image.image.id());
                    if !bootstrap::is_pair(ctx, local, remote).await {
                        return Ok(Some(End::Again(Duration::ZERO)));
                    }
                }
                event = self.own_watch.next() => {
                    return Ok(event.is_none().then_some(End::Again(Duration::ZERO)));
                }
                acquired = &mut acquired => return acquired.map(|()| None),
            }
        }
    }

    /// Waits for something to happen. Answers with how to end the session, if so.
    async fn wait(&mut self) -> Result<Option<End>> {
        let ctx = self.ctx;
        let again = Some(End::Again(Duration::ZERO));
        tokio::select! {
            biased;
            () = ctx.cancel.cancelled() => Ok(Some(End::Cancelled)),
            () = ctx.changed.notified() => Ok(again),
            event = self.own_watch.next() => Ok(if is_there(event) { None } else { again }),
            event = self.their_watch.next() => Ok(if is_there(event) { None } else { again }),
            changed = self.lock_report.changed() => match changed {
                Ok(()) => {
                    let lost = lost(&self.lock_report.borrow_and_update().state)?;
                    Ok(if lost { again } else { None })
                }
                Err(_) => Ok(again),
            },
            () = tokio::time::sleep(WAITING_CHECK_INTERVAL) => Ok(None),
        }
    }

    pub(super) fn say(&self, state: StatusState, description: &str) {
        self.ctx.publish(Report::new(state, description), self.local.image.image.name());
    }

    /// Opens both images anew: their names may have changed.
    pub(super) async fn reopen_images(&mut self) -> Result<bool> {
        let local = bootstrap::open(&self.ctx.local, self.local.image.image.id()).await?;
        let remote = bootstrap::open(&self.ctx.remote, self.remote.image.image.id()).await?;
        let (Some(local), Some(remote)) = (local, remote) else { return Ok(false) };
        self.local.image = local;
        self.remote.image = remote;
        Ok(true)
    }

    /// Sets the wish for a resync that nobody had, so that every daemon that finds it half-way starts over.
    pub(super) async fn wish_for_resync(&mut self, why: Resync) -> Result<()> {
        if why == Resync::Disconnected {
            tracing::warn!(image = %self.ctx.global_image_id, "disconnected: automatic resync");
            self.local.journal.set_resync(true).await?;
        }
        Ok(())
    }

    /// True when this site's client counts.
    pub(super) fn is_connected(&self) -> bool {
        self.registered.client.as_ref().is_some_and(|(client, _)| client.state == ClientState::Connected)
    }
}

/// Reads tags and client of a remote journal.
async fn registered(remote: &Journalled, local_mirror_uuid: &str) -> Result<Registered> {
    let journal = &remote.journal.journal;
    let client = journal.client(local_mirror_uuid).await?;
    let listed_for = if client.is_some() { local_mirror_uuid } else { IMAGE_CLIENT_ID };
    let tags = tags_for(journal, listed_for, remote.journal.tag_class).await?;
    let client = client.map(|client| {
        let peer = match client.client_data() {
            Ok(ClientData::MirrorPeer(peer)) => Some(peer),
            _ => None,
        };
        (client, peer)
    });
    Ok(Registered { tags, client })
}

/// False when a watch is gone for good, or its journal is.
pub(super) fn is_there(event: Option<JournalEvent>) -> bool {
    match event {
        None => false,
        Some(JournalEvent::Lost(error)) => !error.is_not_found(),
        Some(JournalEvent::Changed) => true,
    }
}

/// True when the lock is lost, so that the image must be opened anew; an error when the connection is of no use any more.
pub(super) fn lost(state: &LockState) -> Result<bool> {
    match state {
        LockState::Fenced(error) if error.class() == ErrorClass::Fenced => Err(error.clone()),
        LockState::Fenced(_) | LockState::Lost(_) => Ok(true),
        LockState::Unlocked | LockState::Acquiring | LockState::Locked(_) => Ok(false),
    }
}

fn describe(stop: &Stop) -> (StatusState, String) {
    match stop {
        Stop::LocalPrimary => (StatusState::Stopped, "local image is primary".into()),
        Stop::RemoteNotPrimary => (StatusState::Unknown, "remote image is not primary".into()),
        // Not "unknown", by which others tell that the copy has all that the remote image had.
        Stop::ResyncAwaitsPrimary => (StatusState::StartingReplay, RESYNC_WAITS.into()),
        Stop::Disconnected => (
            StatusState::Error,
            "disconnected: this site was away for too long, and the remote journal may have been trimmed; run 'rbd \
             mirror image resync'"
                .into(),
        ),
        Stop::SplitBrain(why) => (
            StatusState::Error,
            format!(
                "split-brain detected: {why}; 'rbd mirror image resync' of this image gives up what it holds and makes it \
                 a copy of the remote one"
            ),
        ),
        Stop::StrangeClient => (
            StatusState::Error,
            "error retrieving remote journal client: it was not registered by a mirror".into(),
        ),
    }
}
