//! Throughput of this crate on a cluster, to be held against `rados bench`.
//!
//! `bench CONF POOL [DEPTH]`: 4 MiB writes, the same read back, 4 KiB writes, and reads of 4 KiB in compound operations of
//! five parts, each with DEPTH operations in flight (default 16). Prints MiB/s, operations/s, and the CPU time of this process per operation. Removes its objects.

use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use rados::{ConnectOptions, Extent, IoCtx, ReadOp, ReadSub, Result, SnapId, WriteOp, WriteSub};

const LARGE: u64 = 4 << 20;
const SMALL: u64 = 4 << 10;

#[tokio::main]
async fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let (Some(conf), Some(pool)) = (args.next(), args.next()) else {
        eprintln!("usage: bench CONF POOL [DEPTH]");
        std::process::exit(2);
    };
    let depth = args.next().and_then(|depth| depth.parse().ok()).unwrap_or(16);
    let options = ConnectOptions { conf_file: Some(conf.into()), ..ConnectOptions::default() };
    let cluster = rados::connect(options).await?;
    let io = cluster.pool(cluster.pool_by_name(&pool).await?);
    let stem = format!("bench-{}", cluster.instance_id());

    let data = Bytes::from(vec![0xa5; LARGE as usize]);
    let write = |i: u64| {
        let op = WriteOp::new(format!("{stem}-{i}")).with(WriteSub::WriteFull(data.clone()));
        let io = io.clone();
        async move { io.write(op).await.map(drop) }
    };
    measure("4 MiB writes", 256, LARGE, depth, write).await?;
    let read = |i: u64| {
        let (io, name) = (io.clone(), format!("{stem}-{i}"));
        async move { io.read_extent(&name, SnapId::HEAD, Extent::new(0, LARGE)).await.map(drop) }
    };
    measure("4 MiB reads", 256, LARGE, depth, read).await?;
    let write = |i: u64| {
        let sub = WriteSub::Write { offset: (i / 256) * SMALL, data: data.slice(..SMALL as usize) };
        let (io, op) = (io.clone(), WriteOp::new(format!("{stem}-{}", i % 256)).with(sub));
        async move { io.write(op).await.map(drop) }
    };
    measure("4 KiB writes", 20_000, SMALL, depth, write).await?;
    let read = |i: u64| {
        let parts =
            (0..5).map(|part| ReadSub::SparseRead(Extent::new((i / 256 % 8 + 8 * part) * SMALL, SMALL)));
        let (io, op) = (io.clone(), parts.fold(ReadOp::new(format!("{stem}-{}", i % 256)), ReadOp::with));
        async move { io.read(op).await.map(drop) }
    };
    measure("5 x 4 KiB reads", 50_000, 5 * SMALL, depth, read).await?;
    remove(&io, &stem).await?;
    drop((io, cluster));
    rados::all_closed(Duration::from_secs(10)).await;
    Ok(())
}

async fn measure<F: Future<Output = Result<()>>>(
    what: &str,
    count: u64,
    bytes: u64,
    depth: usize,
    run: impl FnMut(u64) -> F,
) -> Result<()> {
    let (started, cpu) = (Instant::now(), cpu_seconds());
    stream::iter(0..count).map(run).buffer_unordered(depth).try_collect::<()>().await?;
    let (seconds, cpu) = (started.elapsed().as_secs_f64(), cpu_seconds() - cpu);
    println!(
        "{what:15} depth {depth:3}: {:7.0} MiB/s, {:7.0} op/s, {:6.0} us of CPU each",
        (count * bytes) as f64 / seconds / f64::from(1 << 20),
        count as f64 / seconds,
        cpu / count as f64 * 1e6,
    );
    Ok(())
}

async fn remove(io: &IoCtx, stem: &str) -> Result<()> {
    let removals = stream::iter(0..256).map(|i| {
        let (io, name) = (io.clone(), format!("{stem}-{i}"));
        async move { io.remove(&name).await }
    });
    removals.buffer_unordered(16).try_collect().await
}

/// CPU time of this process so far: fields 14 and 15 of `/proc/self/stat`, in hundredths of a second.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    fields.skip(11).take(2).filter_map(|ticks| ticks.parse::<f64>().ok()).sum::<f64>() / 100.0
}
