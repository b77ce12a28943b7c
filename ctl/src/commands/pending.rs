use control::Pool; use rados::{Error,Result,SnapId}; use rbd::mirroring::{MirrorImageMode,MirrorMode}; use bootstrap::*;
pub enum Quiesce { Required, IgnoreError, Skip }
pub struct Progress<'a> { pub image: &'a str, pub finished: usize, pub total: usize }
pub struct PoolOutcome { pub changed: Vec<String>, pub passed_over: Vec<String>, pub failed: Vec<(String, Error)> }
#[allow(async_fn_in_trait)]
pub trait Pending {
    async fn enable(&self, image: &str, mode: MirrorImageMode) -> Result<()> {todo!()}
    async fn disable(&self, image: &str, force: bool) -> Result<()>{todo!()}
    async fn promote(&self, image: &str, force: bool) -> Result<()>{todo!()}
    async fn demote(&self, image: &str) -> Result<()>{todo!()}
    async fn resync(&self, image: &str) -> Result<()>{todo!()}
    async fn snapshot(&self, image: &str, quiesce: Quiesce) -> Result<SnapId>{todo!()}
    async fn set_mode(&self, mode: MirrorMode, remote_namespace: Option<&str>) -> Result<Option<MirrorMode>>{todo!()}
    async fn promote_all(&self, force: bool, progress: impl FnMut(Progress<'_>)) -> Result<PoolOutcome>{todo!()}
    async fn demote_all(&self, progress: impl FnMut(Progress<'_>)) -> Result<PoolOutcome>{todo!()}
    async fn remove_peer(&self, uuid: &str) -> Result<()>{todo!()}
    async fn import_token(&self, token: &Token, direction: ImportDirection, connector: &PeerConnector) -> Result<Imported>{todo!()}
}
impl Pending for Pool {}
