//! The first copy of an image, and the repair of one that went astray, from the plan's decision to a copy that replays.
//!
//! While data is copied the session listens: to be told to end, to changes of the pair, to the loss of the lock, and to
//! the local journal, in which a promotion appears. Each of these stops the copy; it is awaited to its last request
//! before anything else happens.
//!
//! Status, in Ceph's words but for a comma (see [`Report`](crate::report::Report)): `bootstrapping: IMAGE_SYNC/COPY_IMAGE
//! 37%`.

use rbd::mirroring::StatusState;
use std::sync::Arc;
use std::time::Duration;

use deep_copy::checksum::Comparison;
use deep_copy::copier::{Checkpoint, Copier, CopyFailed, Options, Progress};
use deep_copy::diff::Visits;
use deep_copy::local_maps;
use deep_copy::map_trust::History;
use deep_copy::object_copy::{Method, ObjectCopier};
use deep_copy::pair::{Pair, failure, side};
use futures::FutureExt;
use journal::bootstrap::{Owner, Resync};
use journal::first_copy::sync_point::Source;
use journal::first_copy::{Begun, CopyMarker, Held, Origin, begin, checkpoint, complete, find_event, marker};
use journal::replay;
use journal::types::{ClientData, MirrorPeer, MirrorPeerState};
use rados::{Error, Result, SnapId};
use rbd::made_anew::made_anew;
use rbd::{HeaderUpdate, SnapshotNamespace};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::replay::{Until, tail_error};
use super::session::{End, RESYNC_WAITS, Session, is_there, lost};
use super::{first_tag, register_anew, yet_to_be_copied};
use crate::image::{LOOK_INTERVAL, bootstrap};
use crate::settings::object_map_trust;

/// How often progress is published while data is copied.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(500);
/// How long to wait before the pair is looked at again after a copy was stopped.
const STOPPED_PAUSE: Duration = Duration::from_millis(100);

/// Knobs of the copies of journal mode: those of snapshot mode.
fn options() -> Options {
    Options::default()
}

impl Session<'_> {
    /// Copies the image, or goes on with a copy. Answers with how to end the session, if so.
    pub(super) async fn first_copy(&mut self) -> Result<Option<End>> {
        let noted = marker::read(&self.local.image.image).await?;
        let peer = self.registered.peer(self.local.image.image.id());
        let held = Held::of(&peer, noted.as_ref());
        self.copy_from_sync_point(peer, noted, held).await
    }

    /// Brings the image in line with the remote one, whatever it holds. Answers with how to end the session, if so.
    pub(super) async fn resync(&mut self, why: Resync) -> Result<Option<End>> {
        if self.lacks_parent() {
            if self.remote.journal.owner() != Owner::Primary {
                // A copy that was removed could not be made anew.
                self.say(StatusState::StartingReplay, RESYNC_WAITS);
                return Ok(Some(End::Again(LOOK_INTERVAL)));
            }
            // There is no telling what of it came from the parent: it is made anew. Only what is tied to the remote image is
            // removed.
            return Ok(Some(match self.local.journal.follow(&first_tag(self.ctx)).await? {
                true => End::Discard,
                false => End::Again(Duration::ZERO),
            }));
        }
        self.wish_for_resync(why).await?;
        // Tied to the remote image it cannot be promoted but by force.
        if !self.local.journal.follow(&first_tag(self.ctx)).await? {
            return Ok(Some(End::Again(Duration::ZERO)));
        }
        let id = self.local.image.image.id().clone();
        let noted = marker::read(&self.local.image.image).await?;
        let noted = noted.filter(|marker| marker.repair);
        let peer = self.registered.peer(&id);
        let under_way = peer.image == id
            && peer.state == MirrorPeerState::Syncing
            && noted.as_ref().is_some_and(|marker| marker.is_of(&peer))
            && self.is_connected();
        if under_way {
            return self.copy_from_sync_point(peer, noted, Held::Anything).await;
        }
        tracing::info!(image = %self.ctx.global_image_id, "bringing '{}' in line", self.local.image.image.name());
        for point in &peer.sync_points {
            self.source().remove(&point.name).await?;
        }
        register_anew(self.ctx, &self.their_journal(), &id).await?;
        self.copy_from_sync_point(yet_to_be_copied(&id), None, Held::Anything).await
    }

    /// True when the remote image is a clone, and the local one is none any more.
    fn lacks_parent(&self) -> bool {
        self.remote.image.header.parent.is_some() && self.local.image.header.parent_spec.is_none()
    }

    async fn copy_from_sync_point(
        &mut self,
        mut peer: MirrorPeer,
        noted: Option<CopyMarker>,
        held: Held,
    ) -> Result<Option<End>> {
        if let Some(done) = noted.as_ref().filter(|marker| marker.copied && marker.is_of(&peer)) {
            return self.replay_from(done.clone()).await;
        }
        self.say(StatusState::Syncing, "bootstrapping: IMAGE_SYNC/CREATE_SYNC_POINT");
        // What was replayed before says nothing about what is going to be copied.
        replay::clear_marker(&self.local.image.image).await?;
        self.remote.image.refresh().await?;
        let line = self.lifeline.line();
        let mut source = self.source();
        source.prune(&mut peer).await?;
        let origin = match peer.sync_points.is_empty() {
            // Snapshot ids may have to be waited for.
            true => Some(line.unless_severed(source.create(&mut peer)).await?),
            false => None,
        };
        tracing::debug!(image = %self.ctx.global_image_id, "there is a sync point");
        let ids = self.ctx.shared.snap_ids(self.local.image.image.data_ioctx());
        let (local, remote) = (&mut self.local.image, &self.remote.image);
        let begun = begin(local, remote, &peer, noted, (held, origin), &ids).await?;
        peer.snap_seqs = begun.marker.snap_seqs.clone();
        self.store_peer(peer.clone()).await?;
        tracing::debug!(image = %self.ctx.global_image_id, "copying data");
        if let Some(end) = self.copy(&begun, peer.clone()).await? {
            return Ok(Some(end));
        }
        tracing::debug!(image = %self.ctx.global_image_id, "the data is copied");
        if !self.reopen_images().await? {
            return Ok(Some(End::Again(Duration::ZERO)));
        }
        let end = self.expect_kept(&begun)?;
        let seqs = &begun.marker.snap_seqs;
        let left = complete(&mut self.local.image, &self.remote.image, end, seqs).await?;
        for left in &left {
            tracing::warn!(image = %self.ctx.global_image_id, "part of the image state cannot be applied: {left}");
        }
        self.not_applied = left.into_iter().next();
        let copied = CopyMarker { copied: true, copied_below: u64::MAX, ..begun.marker };
        marker::write(&self.local.image.image, &copied).await?;
        self.replay_from(copied).await
    }

    /// The copy is complete. Finds where the replay starts; what may be missing in the sync point is replayed before the
    /// copy is declared to be one. Answers with how to end the session, if so.
    async fn replay_from(&mut self, mut copied: CopyMarker) -> Result<Option<End>> {
        let image = self.local.image.image.clone();
        let settle = match copied.origin {
            Origin::Event => {
                copied.start = self.find_start(&copied.sync_point).await?;
                copied.start.is_none().then_some(None)
            }
            Origin::Unowned { newest } => Some(Some(newest)),
        };
        match settle {
            None => marker::write(&image, &copied).await?,
            Some(tag) => {
                if let Some(end) = self.replay(Until::Settled(tag)).await? {
                    return Ok(Some(end));
                }
            }
        }
        self.declare_replaying().await?;
        if copied.start.is_none() {
            marker::remove(&image).await?;
        }
        Ok(None)
    }

    /// The position behind which the replay starts, when the remote journal tells it.
    async fn find_start(&self, sync_point: &str) -> Result<Option<journal::types::EntryPosition>> {
        let journal = self.their_journal();
        let client = journal.client(&self.ctx.local_mirror_uuid).await?;
        let from = client.map(|client| client.commit_position).unwrap_or_default();
        let found = find_event(&journal, &self.ctx.local_mirror_uuid, from, sync_point).await;
        let found = found.map_err(|error| tail_error(&self.remote.image, error))?;
        if found.is_none() {
            tracing::warn!(
                image = %self.ctx.global_image_id,
                "the remote journal does not tell of the sync point '{sync_point}': replaying from the commit position"
            );
        }
        Ok(found)
    }

    /// Says that the copy is one. The sync point is removed later: without it, a daemon that finds a copy under way
    /// starts over.
    async fn declare_replaying(&mut self) -> Result<()> {
        let peer = self.registered.peer(self.local.image.image.id());
        self.store_peer(MirrorPeer { state: MirrorPeerState::Replaying, ..peer }).await?;
        if self.local.journal.resync_requested {
            self.local.image.refresh().await?;
            let (image, header) = (&self.local.image.image, &self.local.image.header);
            made_anew(HeaderUpdate::of(image.id()), header, None).apply(image.header_ioctx()).await?;
            self.local.journal.set_resync(false).await?;
        }
        tracing::info!(image = %self.ctx.global_image_id, "copied '{}'", self.local.image.image.name());
        Ok(())
    }

    /// The sync point's snapshot, which must have been there all the time, under one id: while it is being removed it
    /// shows objects as absent.
    fn expect_kept(&self, begun: &Begun) -> Result<SnapId> {
        let end = begun.steps.remote_ends().last().copied().unwrap_or(SnapId::HEAD);
        match self.remote.image.header.user_snapshot(&begun.marker.sync_point) {
            Some(snapshot) if snapshot.id == end => Ok(end),
            _ => {
                let name = self.remote.image.image.name();
                let what =
                    format!("cannot complete the copy of '{name}': its sync point was removed meanwhile");
                Err(Error::new(libc::EAGAIN, what))
            }
        }
    }

    fn source(&mut self) -> Source<'_> {
        Source {
            ids: self.lifeline.remote_snap_ids(&self.ctx.shared, self.remote.image.image.data_ioctx()),
            image: &mut self.remote.image,
            journal: &self.remote.journal.journal,
            local_mirror_uuid: &self.ctx.local_mirror_uuid,
        }
    }

    /// Copies the data, listening meanwhile. Answers with how to end the session, if it was stopped.
    async fn copy(&mut self, begun: &Begun, peer: MirrorPeer) -> Result<Option<End>> {
        let stop = self.ctx.cancel.child_token();
        let (progress, mut published) = watch::channel(Progress::default());
        let copier = self.copier(begun, peer, progress, stop.clone()).await?;
        let mut copy = copier.run().boxed();
        let mut stopped = None;
        let pools = [self.ctx.local.pool_id(), self.local.image.image.data_ioctx().pool_id()];
        let mut ticks = tokio::time::interval(PROGRESS_INTERVAL);
        let ctx = self.ctx;
        // Nothing in this loop may return before the copy has: its writes would go on unwatched.
        let outcome = loop {
            let heard = tokio::select! {
                outcome = &mut copy => break outcome,
                () = ctx.cancel.cancelled(), if stopped.is_none() => Some(Ok(End::Cancelled)),
                full = ctx.shared.space.full(&pools), if stopped.is_none() => Some(Err(full)),
                () = ctx.changed.notified(), if stopped.is_none() => {
                    let same = bootstrap::is_pair(
                        ctx,
                        self.local.image.image.id(),
                        self.remote.image.image.id(),
                    );
                    (!same.await).then_some(Ok(End::Again(Duration::ZERO)))
                }
                changed = self.lock_report.changed(), if stopped.is_none() => {
                    let state = self.lock_report.borrow_and_update().state.clone();
                    match lost(&state) {
                        Ok(lost) => (lost || changed.is_err()).then_some(Ok(End::Again(STOPPED_PAUSE))),
                        Err(error) => Some(Err(error)),
                    }
                }
                event = self.own_watch.next(), if stopped.is_none() => {
                    let there = is_there(event);
                    let promoted = match self.local.journal.refresh().await {
                        Ok(()) => self.local.journal.owner() == Owner::Primary,
                        Err(_) => true,
                    };
                    (promoted || !there).then_some(Ok(End::Again(STOPPED_PAUSE)))
                }
                _ = ticks.tick() => {
                    let now = *published.borrow_and_update();
                    let percent = (100 * now.objects_done).checked_div(now.objects_total).unwrap_or(0);
                    self.say(StatusState::Syncing, &format!("bootstrapping: IMAGE_SYNC/COPY_IMAGE {percent}%"));
                    None
                }
            };
            if heard.is_some() {
                stopped = heard;
                stop.cancel();
            }
        };
        match (outcome, stopped) {
            (_, Some(Err(error))) => Err(error),
            (Ok(_) | Err(CopyFailed::Cancelled), Some(Ok(end))) => Ok(Some(end)),
            (Ok(_), None) => Ok(None),
            (Err(CopyFailed::Cancelled), None) => Ok(Some(End::Cancelled)),
            (Err(failed), _) => Err(failure(self.remote.image.image.name(), failed)),
        }
    }

    async fn copier(
        &self,
        begun: &Begun,
        peer: MirrorPeer,
        progress: watch::Sender<Progress>,
        cancel: CancellationToken,
    ) -> Result<Copier> {
        let pair = Pair { local: &self.local.image, remote: &self.remote.image };
        let maps = local_maps::load(pair.local, &begun.steps).await?;
        let end = begun.steps.remote_ends().last().copied().unwrap_or(SnapId::HEAD);
        let known = bootstrap::parentage(self.ctx, &pair.local.header, pair.remote).await?;
        let first = begun.steps.steps().first();
        let unknown = begun.marker.repair && known == bootstrap::Parentage::Unknown;
        let parents = match first.filter(|_| unknown) {
            Some(step) => pair.parents(step.remote).await?,
            None => None,
        };
        let mut visits = if begun.marker.repair {
            Visits::all(pair.objects_max())
        } else {
            let snapshots = pair.remote.header.snapshots.values();
            let users = snapshots.filter(|s| s.namespace == SnapshotNamespace::User).map(|s| s.id);
            let history = History { users_at_end: users.collect(), settled: true, ..History::default() };
            let (of_image, of_pool) = (&pair.remote.header.metadata, &self.pool_metadata);
            let trust = object_map_trust(of_image, of_pool, self.ctx.object_map_trust);
            pair.changes(None, end, trust, &history).await?.visits
        };
        if begun.resumed {
            visits = match &maps {
                Some(maps) => visits.with_changed(maps.head()),
                // What was written before the interruption is not known.
                None => visits.and_all_others(pair.objects_max()),
            };
        }
        Ok(Copier {
            objects: ObjectCopier {
                remote: side(pair.remote),
                local: side(pair.local),
                steps: Arc::new(begun.steps.clone()),
                object_size: pair.local.image.layout().object_size(),
                method: if begun.marker.repair { Method::Repair } else { Method::Replay },
                comparison: Comparison::default(),
                resumed: begun.resumed,
                has_parent: pair.local.header.parent_spec.is_some(),
                // No local snapshot is older than the copy but those that are of no use any more.
                copy_up_at: Vec::new(),
                parents,
                budget: self.ctx.shared.budget.part(),
                cancel,
            },
            visits: visits.from(begun.marker.copied_below),
            object_count: pair.objects_max(),
            maps,
            progress,
            checkpoint: self.checkpoint(begun.marker.clone(), peer),
            options: options(),
        })
    }

    /// Stores how far the copy is: beside the local image, then with this site's client, where Ceph's daemon looks.
    fn checkpoint(&self, marker: CopyMarker, peer: MirrorPeer) -> Checkpoint {
        let (local, journal) = (self.local.image.clone(), self.their_journal());
        let id = self.ctx.local_mirror_uuid.to_string();
        Box::new(move |below| {
            let (local, journal, id) = (local.clone(), journal.clone(), id.clone());
            let (marker, mut peer) = (marker.clone(), peer.clone());
            async move {
                checkpoint(&local, &marker, below).await?;
                if let Some(point) = peer.sync_points.first_mut() {
                    point.object_number = below.checked_sub(1);
                }
                peer.sync_object_count = peer.sync_object_count.max(below);
                journal.client_update_data(&id, &ClientData::MirrorPeer(peer)).await
            }
            .boxed()
        })
    }
}
