//! The lock that the mirroring daemons of a pool share.

use anyhow::{Context, Result, ensure};
use rados::ReadSub;
use rbd::managed_lock::{Attempt, Breaking, Broken, ManagedLock};
use rbd::mirroring::{LEADER_OBJECT, MirrorDaemons};

use crate::world::{DEATH_LIMIT, LIMIT, World};

pub async fn leaders_take_turns(world: &World) -> Result<()> {
    MirrorDaemons::new(&world.pool).create().await?;
    let (_cluster, pool) = world.stranger(&[]).await?;
    let (mine, theirs) =
        (world.pool.watch(LEADER_OBJECT, LIMIT).await?, pool.watch(LEADER_OBJECT, LIMIT).await?);
    let mut first = ManagedLock::new(&world.pool, LEADER_OBJECT);
    let mut second = ManagedLock::new(&pool, LEADER_OBJECT);
    ensure!(first.owner().await?.is_none(), "nobody leads");
    ensure!(first.try_acquire(mine.cookie).await? == Attempt::Acquired, "the first one leads");
    ensure!(first.try_acquire(mine.cookie).await? == Attempt::Acquired, "asking again changes nothing");
    let owner = first.owner().await?.context("a leader")?;
    ensure!(
        second.try_acquire(theirs.cookie).await? == Attempt::Owned(owner.clone()),
        "the second one waits"
    );
    ensure!(second.break_lock(&owner, Breaking::DeadOnly).await? == Broken::Kept, "the leader lives");
    ensure!(!second.is_held() && first.is_held(), "{first:?} {second:?}");
    let assertion = first.assertion().context("held")?;
    world.pool.write(rados::WriteOp::new(LEADER_OBJECT).with(assertion)).await?;
    first.verify().await?;

    // Over to a new watch, as after a lost one.
    let renewed = world.pool.watch(LEADER_OBJECT, LIMIT).await?;
    first.reacquire(renewed.cookie).await?;
    mine.unregister().await?;
    first.verify().await?;
    let now = first.owner().await?.context("a leader")?;
    ensure!(now.watch_cookie == renewed.cookie && second.is_alive(&now).await?, "{now:?}");
    ensure!(
        second.break_lock(&owner, Breaking::DeadOnly).await? == Broken::Kept,
        "not the one that was looked at"
    );

    first.release().await?;
    first.release().await?;
    ensure!(second.try_acquire(theirs.cookie).await? == Attempt::Acquired, "the second one's turn");
    let lost = first.verify().await.expect_err("not held");
    ensure!(lost.is_not_found(), "{lost}");

    // A leader whose watch ends without releasing is dead.
    theirs.unregister().await?;
    let dead = second.owner().await?.context("locked still")?;
    ensure!(!first.is_alive(&dead).await?, "{dead:?}");
    ensure!(first.try_acquire(renewed.cookie).await? == Attempt::Acquired, "the dead one's lock is broken");
    let fenced = world.stock.blocklist().await?;
    ensure!(fenced.iter().any(|entry| entry.addr == dead.address.to_string()), "{dead:?} in {fenced:?}");
    let lost = second.verify().await.expect_err("broken");
    ensure!(!second.is_held(), "{lost}");
    first.release().await?;
    Ok(())
}

pub async fn a_live_leader_is_only_broken_by_force(world: &World) -> Result<()> {
    MirrorDaemons::new(&world.pool).create().await?;
    let (cluster, pool) = world.stranger(&[]).await?;
    let (mine, theirs) =
        (world.pool.watch(LEADER_OBJECT, LIMIT).await?, pool.watch(LEADER_OBJECT, LIMIT).await?);
    let mut leader = ManagedLock::new(&pool, LEADER_OBJECT);
    ensure!(leader.try_acquire(theirs.cookie).await? == Attempt::Acquired, "it leads");
    let mut other = ManagedLock::new(&world.pool, LEADER_OBJECT);
    let owner = other.owner().await?.context("a leader")?;
    ensure!(owner.address.to_string() == cluster.address(), "{owner:?}, {}", cluster.address());
    ensure!(other.break_lock(&owner, Breaking::Forced).await? == Broken::Gone, "broken");
    ensure!(other.try_acquire(mine.cookie).await? == Attempt::Acquired, "taken");
    let fenced = pool.read_one(LEADER_OBJECT, rados::SnapId::HEAD, ReadSub::Stat);
    let fenced = tokio::time::timeout(DEATH_LIMIT, fenced).await.context("it is not told")?;
    ensure!(fenced.as_ref().is_err_and(|error| error.is(libc::ESHUTDOWN)), "{fenced:?}");
    let own = other.owner().await?.context("ours")?;
    let refused = other.break_lock(&own, Breaking::Forced).await.expect_err("not our own");
    ensure!(refused.is(libc::EINVAL), "{refused}");
    other.release().await?;
    Ok(())
}
