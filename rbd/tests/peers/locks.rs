//! Images' exclusive locks between us and stock clients.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rados::fault::{Fault, FaultPlan, Faulty, Matcher};
use rados::{Backend, Error, Extent, IoCtx, Location, SnapId, WriteOp, WriteSub};
use rbd::exclusive_lock::{ExclusiveLock, LockState, RequestPolicy};
use rbd::managed_lock::lock_cookie;
use rbd::object_map::object_map_object;
use tests::{OsdEnd, wait};
use tokio::process::Child;

use crate::world::{DEATH_LIMIT, LIMIT, World, expect_success, open_lock, open_lock_in, spec, wait_report};

fn signal(child: &Child, signal: Signal) -> Result<()> {
    Ok(kill(Pid::from_raw(child.id().context("it runs")?.cast_signed()), signal)?)
}

async fn acquire(lock: &ExclusiveLock, limit: Duration) -> Result<()> {
    Ok(tokio::time::timeout(limit, lock.acquire()).await.context("the lock does not come")??)
}

pub async fn stock_takes_the_lock_over_and_gives_it_back(world: &World) -> Result<()> {
    let image = world.image("turns").await?;
    let lock = world.lock(&image, RequestPolicy::HandOver).await?;
    acquire(&lock, LIMIT).await?;
    lock.verify().await?;
    let owner = world.owner(&image).await?.context("locked")?;
    ensure!(owner.entity.number as u64 == world.cluster.instance_id(), "{owner:?}");
    let listed = world.stock.rbd_json(&["lock", "ls", &spec("turns")]).await?;
    ensure!(listed[0]["id"] == owner.cookie.as_str(), "{listed}");
    let map = object_map_object(&image, SnapId::HEAD);
    ensure!(world.pool.lock_info(&map, "rbd_lock").await?.lockers.len() == 1, "the object map is locked");

    let writer = world.spawn_bench("turns", "1M")?;
    let report = wait_report(&lock, "a request", LIMIT, |report| report.requested.is_some()).await?;
    ensure!(report.is_held() && world.owner(&image).await? == Some(owner), "held until we release it");
    lock.release().await?;
    ensure!(!lock.is_held(), "released");
    expect_success(writer, "the stock writer").await?;

    let writer = world.writer("turns").await?;
    ensure!(!lock.try_acquire().await?, "a live owner is not asked");
    acquire(&lock, LIMIT).await?;
    lock.verify().await?;
    ensure!(
        world.pool.lock_info(&map, "rbd_lock").await?.lockers.len() == 1,
        "the object map is locked again"
    );
    wait_report(&lock, "the writer to want it back", LIMIT, |report| report.requested.is_some()).await?;
    lock.release().await?;
    wait_report(&lock, "the writer to have it back", LIMIT, |report| report.owner.is_some()).await?;
    drop(writer);
    lock.close().await?;
    Ok(())
}

pub async fn a_refused_peer_is_told_so(world: &World) -> Result<()> {
    let image = world.image("refused").await?;
    let lock = world.lock(&image, RequestPolicy::Refuse).await?;
    acquire(&lock, LIMIT).await?;
    let writer = world.spawn_bench("refused", "1M")?;
    let output =
        tokio::time::timeout(LIMIT, writer.wait_with_output()).await.context("the writer waits")??;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(
        !output.status.success() && errors.contains("Read-only file system"),
        "{}: {errors}",
        output.status
    );
    lock.verify().await?;

    // The other way round: one of ours is refused.
    let (_cluster, pool) = world.stranger(&[]).await?;
    let other = open_lock(&pool, &image, RequestPolicy::HandOver).await?;
    let refused = other.acquire().await.expect_err("refused");
    ensure!(refused.is(libc::EROFS), "{refused}");
    lock.set_policy(RequestPolicy::HandOver);
    let wanted = async {
        wait_report(&lock, "a request", LIMIT, |report| report.requested.is_some()).await?;
        anyhow::Ok(lock.release().await?)
    };
    tokio::try_join!(wanted, acquire(&other, LIMIT))?;
    other.close().await?;
    lock.close().await?;
    ensure!(world.owner(&image).await?.is_none(), "closing gives the lock up");
    Ok(())
}

pub async fn a_frozen_owner_keeps_the_lock(world: &World) -> Result<()> {
    let image = world.image("frozen").await?;
    let writer = world.writer("frozen").await?;
    let owner = world.owner(&image).await?;
    let fenced = world.stock.blocklist().await?;
    signal(&writer, Signal::SIGSTOP)?;
    let lock = world.lock(&image, RequestPolicy::HandOver).await?;
    // Two rounds of asking somebody who does not answer: 5 s each.
    let early = tokio::time::timeout(Duration::from_secs(11), lock.acquire()).await;
    ensure!(
        early.is_err() && world.owner(&image).await? == owner,
        "it lives as long as it watches: {early:?}"
    );
    ensure!(world.stock.blocklist().await? == fenced, "nobody is fenced");
    signal(&writer, Signal::SIGCONT)?;
    acquire(&lock, LIMIT).await?;
    drop(writer);
    lock.close().await?;
    Ok(())
}

pub async fn a_killed_owner_is_fenced(world: &World) -> Result<()> {
    let image = world.image("killed").await?;
    let mut writer = world.writer("killed").await?;
    let dead = world.owner(&image).await?.context("an owner")?;
    signal(&writer, Signal::SIGKILL)?;
    writer.wait().await?;
    let lock = world.lock(&image, RequestPolicy::HandOver).await?;
    acquire(&lock, DEATH_LIMIT).await?;
    lock.verify().await?;
    let fenced = world.stock.blocklist().await?;
    ensure!(fenced.iter().any(|entry| entry.addr == dead.address.to_string()), "{dead:?} in {fenced:?}");
    lock.close().await?;
    Ok(())
}

pub async fn two_of_ours_take_turns(world: &World) -> Result<()> {
    let image = world.image("ours").await?;
    let (_cluster, pool) = world.stranger(&[]).await?;
    let locks = [
        world.lock(&image, RequestPolicy::HandOver).await?,
        open_lock(&pool, &image, RequestPolicy::HandOver).await?,
    ];
    for turn in 0..10 {
        let (taker, giver) = (&locks[turn % 2], &locks[1 - turn % 2]);
        let give = async {
            if giver.is_held() {
                wait_report(giver, "a request", LIMIT, |report| report.requested.is_some()).await?;
                giver.release().await?;
            }
            anyhow::Ok(())
        };
        tokio::try_join!(give, acquire(taker, LIMIT))?;
        ensure!(taker.is_held() && !giver.is_held(), "turn {turn}");
        taker.verify().await?;
        let not_held = giver.verify().await.expect_err("it is not ours");
        ensure!(not_held.is_not_found(), "{not_held}");
    }
    for lock in locks {
        lock.close().await?;
    }
    Ok(())
}

pub async fn a_wish_dropped_leaves_nothing(world: &World) -> Result<()> {
    let image = world.image("dropped").await?;
    let lock = world.lock(&image, RequestPolicy::HandOver).await?;
    for micros in (0..20_000).step_by(1000) {
        let _ = tokio::time::timeout(Duration::from_micros(micros), lock.acquire()).await;
        lock.release().await?;
        ensure!(world.owner(&image).await?.is_none(), "dropped after {micros} µs");
    }
    acquire(&lock, LIMIT).await?;
    drop(lock);
    wait::until("a dropped lock to be given up", LIMIT, || async {
        Ok(world.owner(&image).await?.is_none().then_some(()))
    })
    .await
}

pub async fn a_lock_outlives_a_restarted_osd(world: &World) -> Result<()> {
    let image = world.image("restarted").await?;
    let lock = world.lock(&image, RequestPolicy::HandOver).await?;
    acquire(&lock, LIMIT).await?;
    let before = lock.report().borrow().header_updates;
    world.stock.osd_stop(0, OsdEnd::Kill).await?;
    world.stock.osd_start(0).await?;
    lock.verify().await?;
    wait::until("the owner to watch again", LIMIT, || async {
        let owner = world.owner(&image).await?.context("still locked")?;
        let watchers = world.pool.list_watchers(&rbd::layout::header_object(&image)).await?;
        Ok(owner.is_among(&watchers).then_some(()))
    })
    .await?;
    let report = lock.report().borrow().clone();
    let owner = world.owner(&image).await?.context("still locked")?;
    ensure!(report.state == LockState::Locked(lock_cookie(owner.watch_cookie)), "{report:?}, {owner:?}");
    ensure!(report.header_updates >= before, "{report:?}");

    // Still the owner in everybody's eyes: a stock client asks for it.
    let writer = world.spawn_bench("restarted", "1M")?;
    wait_report(&lock, "a request", LIMIT, |report| report.requested.is_some()).await?;
    lock.release().await?;
    expect_success(writer, "the stock writer").await?;
    lock.close().await?;
    Ok(())
}

pub async fn a_blocklisted_owner_learns_of_it(world: &World) -> Result<()> {
    let image = world.image("blocklisted").await?;
    let (cluster, pool) = world.stranger(&[]).await?;
    let lock = open_lock(&pool, &image, RequestPolicy::HandOver).await?;
    acquire(&lock, LIMIT).await?;
    world.stock.blocklist_add(cluster.address()).await?;
    let fenced = |error: &Error| error.is(libc::ESHUTDOWN);
    let report = wait_report(
        &lock,
        "the end",
        DEATH_LIMIT,
        |report| matches!(&report.state, LockState::Fenced(error) if fenced(error)),
    )
    .await?;
    ensure!(!report.is_held(), "{report:?}");
    let refused = lock.acquire().await.expect_err("fenced");
    ensure!(fenced(&refused), "{refused}");

    let ours = world.lock(&image, RequestPolicy::HandOver).await?;
    acquire(&ours, DEATH_LIMIT).await?;
    ours.close().await?;
    Ok(())
}

pub async fn a_persons_lock_is_respected(world: &World) -> Result<()> {
    let image = world.image("by-hand").await?;
    world.stock.rbd(&["lock", "add", &spec("by-hand"), "mine"]).await?;
    let lock = world.lock(&image, RequestPolicy::HandOver).await?;
    let busy = lock.acquire().await.expect_err("locked by hand");
    ensure!(busy.is(libc::EBUSY) && busy.to_string().contains("rbd lock ls"), "{busy}");
    let listed = world.stock.rbd_json(&["lock", "ls", &spec("by-hand")]).await?;
    let locker = listed[0]["locker"].as_str().context("a locker")?;
    world.stock.rbd(&["lock", "rm", &spec("by-hand"), "mine", locker]).await?;
    acquire(&lock, LIMIT).await?;
    lock.close().await?;
    Ok(())
}

/// How long a write takes to reach its OSD.
const LATE: Duration = Duration::from_secs(3);

/// Drops a session, which refuses its lock to everybody, while a write of its is under way; answers with the one who wants
/// the lock next, through `next`, and what the object holds when it has it.
async fn next_after_a_dropped_session(world: &World, name: &str, next: &IoCtx) -> Result<Bytes> {
    let image = world.image(name).await?;
    let late = FaultPlan::none().at(1, Matcher::default(), Fault::Late(LATE));
    let faulty = Faulty::new(world.pool.backend().clone(), late, &[]);
    let place = Location { pool: world.pool.pool_id(), namespace: "".into() };
    // The lock alone is reached without faults, as if it lay on another OSD.
    let session = world.pool.gated();
    let lock = open_lock_in(&session, &image, RequestPolicy::Refuse).await?;
    acquire(&lock, LIMIT).await?;
    let guard = session.enter()?.context("a gate")?;
    let object = format!("written-under-{name}");
    let write = WriteOp::new(&object).with(WriteSub::WriteFull(Bytes::from_static(b"late")));
    let mut write = faulty.write_guarded(&place, write, guard);
    ensure!(futures::poll!(&mut write).is_pending(), "it is late");
    drop((write, lock));
    ensure!(
        session.write(WriteOp::new("another").with(WriteSub::Create { exclusive: false })).await.is_err(),
        "the session is over"
    );

    let lock = open_lock(next, &image, RequestPolicy::HandOver).await?;
    acquire(&lock, LIMIT).await?;
    let found = world.pool.read_extent(&object, SnapId::HEAD, Extent::new(0, 16)).await?;
    lock.close().await?;
    Ok(found)
}

pub async fn a_lock_stays_until_what_was_written_under_it_is_answered(world: &World) -> Result<()> {
    let fenced = world.stock.blocklist().await?;
    let (_cluster, stranger) = world.stranger(&[]).await?;
    for (name, next) in [("late-stranger", &stranger), ("late-own", &world.pool)] {
        let found = next_after_a_dropped_session(world, name, next).await?;
        ensure!(&found[..] == b"late", "the lock was given up before: {name} holds {found:?}");
    }
    ensure!(world.stock.blocklist().await? == fenced, "nobody is fenced");
    Ok(())
}
