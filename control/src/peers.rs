//! Peers, where more is to be done than to change the table: removing one, and importing a token.
//!
//! Reference: `peer_site_remove` and `peer_bootstrap_import` in `src/librbd/api/Mirror.cc`.

use bootstrap::{Import, ImportDirection, ImportOptions, Imported, PeerConnector, Token};
use futures::{StreamExt, TryStreamExt};
use rados::error::ResultExt;
use rados::{Error, Result};
use rbd::directory;
use rbd::mirroring::{MirrorImageMode, Mirroring};
use rbd::types::ImageId;

use crate::pool::Pool;
use crate::primary::{Pruning, mirror_snapshots, unlink};
use crate::session::Session;

impl Pool {
    /// Strikes out a peer; no error when there is none of this uuid. Mirror-snapshots that wait for it, in all namespaces
    /// of the pool, wait for it no more, and go when they wait for nobody and are not the newest.
    pub async fn remove_peer(&self, uuid: &str) -> Result<()> {
        let what = || format!("cannot remove peer {uuid} of pool '{}'", self.name());
        self.peers().remove(uuid).await.context(what())?;
        let namespaces = directory::namespaces(self.ioctx()).await.context(what())?;
        for namespace in namespaces.into_iter().chain([String::new()]) {
            let there = self.in_namespace(&namespace);
            let images = Mirroring::new(there.ioctx()).images().await.context(what())?;
            let by_snapshots = |mode| mode == MirrorImageMode::Snapshot;
            let images = images.into_iter().filter(|(_, mirror)| by_snapshots(mirror.mode)).map(|(id, _)| id);
            futures::stream::iter(images)
                .map(|id| there.unlink_peer_of(id, uuid))
                .buffer_unordered(self.options().images_in_flight.max(1))
                .try_collect::<()>()
                .await
                .context(what())?;
        }
        Ok(())
    }

    async fn unlink_peer_of(&self, id: ImageId, uuid: &str) -> Result<()> {
        // One that is being made, or was removed meanwhile, has nothing to unlink.
        let Some(session) = Session::open_id(self, &id, &id.0).await.optional()? else { return Ok(()) };
        let unlink = session.run(async |session| session.unlink_everywhere(uuid).await).await;
        unlink.context(format!("cannot unlink it from the mirror-snapshots of image {id}"))
    }

    /// Imports a token: this pool and the one of the same name on the token's site become peers. What mode the other pool
    /// has this one gets, when mirroring is not enabled here. For what is refused see [`bootstrap::import`].
    pub async fn import_token(
        &self,
        token: &Token,
        direction: ImportDirection,
        connector: &PeerConnector,
    ) -> Result<Imported> {
        let options = ImportOptions {
            pool: self.name().to_string(),
            direction,
            cluster_name: self.options().cluster_name.clone(),
            connector: connector.clone(),
        };
        let import = Import::open(self.cluster(), token, options).await?;
        if let Some(mode) = import.mode_to_copy() {
            self.in_namespace("").set_mode(mode, None).await?;
        }
        import.register().await
    }

    /// Fails with EINVAL unless `uuid` has the form of one.
    pub fn check_peer_uuid(uuid: &str) -> Result<()> {
        match uuid::Uuid::try_parse(uuid) {
            // Of the forms that a uuid may be written in, only the usual one counts.
            Ok(_) if uuid.len() == 36 => Ok(()),
            _ => Err(Error::new(libc::EINVAL, format!("'{uuid}' is not a uuid"))),
        }
    }
}

impl Session {
    async fn unlink_everywhere(&mut self, uuid: &str) -> Result<()> {
        let (mut left, mut pruning) = (mirror_snapshots(self.header()), Pruning::default());
        let linked: Vec<_> =
            left.iter().filter(|(_, m)| m.mirror_peer_uuids.contains(uuid)).map(|(id, _)| *id).collect();
        for id in linked {
            unlink(&mut left, &mut pruning, id, uuid);
        }
        self.carry_out(pruning).await
    }
}
