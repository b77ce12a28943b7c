//! How fast a replay is: figures are printed, not judged.

use std::time::Instant;

use anyhow::Result;
use bytes::Bytes;
use journal::event::{Event, EventEntry};
use journal::types::{EntryPosition, EntryTid, TagTid};
use rados::Extent;
use rbd::Timestamp;

use crate::run;
use crate::world::{Copy, POOL, clusters};

const GB: u64 = 1 << 30;

/// Random writes, with a flush behind every `flush_every` of them.
async fn burst(copy: &Copy, tag: u64, count: u64, block: u64, flush_every: u64) -> Result<()> {
    let data = Bytes::from(tests::image::seeded_bytes(tag, block as usize + 512));
    let mut replay = copy.replay(None).await?;
    let (started, mut number, mut seed) = (Instant::now(), 0, tag);
    let mut push = async |event| {
        let position = EntryPosition { tag: TagTid(tag), entry: EntryTid(number) };
        number += 1;
        replay.push(position, EventEntry { event, timestamp: Timestamp::default() }).await
    };
    for index in 0..count {
        seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        let offset = (seed >> 20) % (GB / block) * block;
        let from = (index % 512) as usize;
        let data = data.slice(from..from + block as usize);
        push(Event::Write { extent: Extent::new(offset, block), data }).await?;
        if index % flush_every == flush_every - 1 {
            push(Event::Flush).await?;
        }
    }
    replay.flush().await?;
    let seconds = started.elapsed().as_secs_f64();
    let (rate, mib) = (count as f64 / seconds, (count * block) as f64 / seconds / (1 << 20) as f64);
    println!(
        "{count} writes of {block} bytes, a flush behind every {flush_every}: {rate:.0} writes/s, {mib:.1} MiB/s, {:?}",
        replay.counters()
    );
    replay.stop().await?;
    Ok(())
}

#[test]
fn bursts() {
    run(async {
        clusters().await?.b.create_image(&format!("{POOL}/burst"), GB, &[]).await?;
        let copy = Copy::open("burst").await?;
        burst(&copy, 1, 16384, 4096, u64::MAX).await?;
        burst(&copy, 2, 16384, 4096, u64::MAX).await?;
        burst(&copy, 3, 8192, 65536, u64::MAX).await?;
        burst(&copy, 4, 2000, 4096, 1).await?;
        burst(&copy, 5, 8000, 4096, 32).await
    });
}
